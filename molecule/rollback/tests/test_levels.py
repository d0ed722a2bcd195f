# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every level of the decision, reached by a fault; every tag alone; a rollback that fails half way and is started again."""

from __future__ import annotations

from pathlib import Path

import pytest
from recorded import on_host, unlike_schema

SCENARIO = Path(__file__).resolve().parents[1]
ADMIN_NOTE = "0004_adminnote"
PAGE = "/admin/owner-agreements/intelligence/"
LATE = ("-e", f"@{SCENARIO / 'vars' / 'late.yml'}")
FEATURE = ("-e", f"@{SCENARIO / 'vars' / 'feature.yml'}")
CONSENT = ("-e", "rollback_consent=true")
NO_CURE = ("-e", '{"rollback_cures": []}')


def has_note(site) -> bool:
    return any(ADMIN_NOTE in name for name in site.migrations())


def of_kind(site, kind: str) -> dict:
    return next(record for record in site.records() if record["kind"] == kind)


class TestByItself:
    """What a deployment that fails does."""

    def test_nothing_to_undo_is_abandoned(self, site, step, after):
        done = step("deploy", "-e", "version=broken-dependency")
        assert done.run.code == 2
        assert "FAILED, NOTHING LIVE WAS CHANGED" in done.run.report, str(done.run)
        done.run.line("decision +abandon: ")
        assert done.traffic.failed == []
        after(done, "v2.6")

    @pytest.mark.short
    def test_what_never_served_takes_its_migrations_with_it(self, site, step, after, timed):
        done = step("deploy", "-e", "version=broken-health")
        assert done.run.code == 2
        done.run.line("decision +migrations: The new release never took traffic")
        assert "if restart" in done.run.output.split("the way back, decided before anything is live:")[1]
        assert done.traffic.failed == []
        assert done.traffic.versions == ["v2.6"]
        after(done, "v2.6")
        assert not has_note(site)
        record = site.records()[0]
        assert record["decision"]["rule"] == "never live, and reversible without loss"
        levels = {row["phase"]: row["level"] for row in record["forecast"]}
        assert (levels["restart"], levels["smoke_test"]) == ("migrations", "code")

    def test_what_served_leaves_what_the_old_code_runs_with(self, site, step, after):
        done = step("deploy", "-e", "version=broken-health", *LATE)
        assert done.run.code == 2
        done.run.line("decision +code: The old code runs with what was applied")
        assert "FAILED, AND TAKEN BACK" in done.run.report
        assert "broken-health" in done.traffic.versions
        after(done, "v2.6")
        assert has_note(site)
        assert site.ask(PAGE).status == 404

    @pytest.mark.short
    def test_a_feature_that_breaks_things_is_switched_off_and_the_release_stays(self, site, step, after):
        on = step("flags", "-e", "flags_stage=complete")
        assert on.run.code == 0, str(on.run)
        done = step("deploy", "-e", "version=v2.7", *FEATURE)
        assert done.run.code == 2
        assert "FAILED, AND CURED BY SWITCHING THE FEATURES OFF" in done.run.report, str(done.run)
        done.run.line("decision +flags: ")
        assert "NEW_PAGES=false" in site.run("cat", "/srv/goexplorer/shared/flags.env")
        after(done, "v2.7")
        record = site.records()[0]
        assert (record["verdict"], record["decision"]["level"]) == ("success", "flags")
        assert record["failures"][0]["checks"] == ["the new pages work"]


class TestByHand:
    """What an operator does with tags; v2.7 serves."""

    def test_a_mistyped_tag_is_refused(self, site, step, after):
        for tags in ("cod", "code,restore"):
            done = step("rollback", "--tags", tags)
            assert done.run.code == 2
            assert "nothing was changed" in done.run.output
        after(done, "v2.7")

    @pytest.mark.short
    def test_flags_alone(self, site, step, after, timed):
        on = step("flags", "-e", "flags_stage=complete")
        assert on.run.code == 0, str(on.run)
        done = step("rollback", "--tags", "flags", "-e", "rollback_reason=test")
        assert done.run.code == 0, str(done.run)
        assert "NEW_PAGES=false" in site.run("cat", "/srv/goexplorer/shared/flags.env")
        timed("flags, meant to take 10 s,", done.run.seconds, 300)
        assert done.traffic.failed == []
        after(done, "v2.7")

    def test_restart_alone_starts_what_is_down(self, site, step, after):
        site.run("systemctl", "stop", f"{site.unit}@*")
        assert site.ask("/healthz/").status != 200
        done = step("rollback", "--tags", "restart")
        assert done.run.code == 0, str(done.run)
        after(done, "v2.7")

    def test_verify_alone_fails_where_something_is_down_and_changes_nothing(self, site, step, after):
        assert step("rollback", "--tags", "verify").run.code == 0
        site.run("systemctl", "stop", f"{site.unit}@*")
        assert site.playbook("rollback", "--tags", "verify").code == 2
        assert site.ask("/healthz/").status != 200
        done = step("rollback", "--tags", "restart,verify")
        assert done.run.code == 0, str(done.run)
        after(done, "v2.7")

    @pytest.mark.short
    def test_check_shows_the_plan_and_changes_nothing(self, site, step, after):
        before = [record["id"] for record in site.records()]
        done = step("rollback", "--check", "-e", "rollback_mode=emergency")
        assert done.run.code == 0, str(done.run)
        done.run.line("decision +code: ")
        done.run.line(f"step +start the release before on {site.name}: ")
        done.run.line(f"left out +what must be absent is not asked: {PAGE}")
        assert [record["id"] for record in site.records()] == before
        after(done, "v2.7")

    @pytest.mark.short
    def test_a_rollback_that_fails_half_way_says_how_to_go_on_and_does(self, site, step, after, timed):
        refused = step("rollback", "--tags", "code", "-e", "rollback_mode=planned")
        assert refused.run.code == 2
        assert "needs a reason" in refused.run.report
        # What is gone back to cannot start, and nobody knew.
        target = next(r for r in site.records() if r["version"] == "v2.6" and r["verdict"] == "success")
        wsgi = f"{site.root}/releases/{target['release']}/goexplorer/wsgi.py"
        site.run("mv", wsgi, f"{wsgi}.gone")
        failed = step("rollback", "--tags", "code")
        assert failed.run.code == 2
        assert "STOPPED: A PERSON IS NEEDED" in failed.run.report, str(failed.run)
        failed.run.line(f"{site.name} +serves v2.7")
        failed.run.line("next +ansible-playbook playbooks/rollback.yml .*deployment_take_over=true")
        after(failed, "v2.7")
        site.run("mv", f"{wsgi}.gone", wsgi)
        undone = next(r for r in site.records() if r["version"] == "v2.7" and r["verdict"] == "success")
        words = (
            "-e",
            "rollback_mode=planned",
            "-e",
            'rollback_reason="the search is slow"',
            "-e",
            "deployment_take_over=true",
        )
        done = step("rollback", "--tags", "code", *words)
        assert done.run.code == 0, str(done.run)
        assert done.traffic.failed == []
        timed("code, meant to take 15 s on one host,", done.run.seconds, 900)
        after(done, "v2.6")
        assert site.ask(PAGE).status == 404
        record = site.records()[0]
        assert (record["kind"], record["undoes"], record["verdict"]) == ("rollback", undone["id"], "success")
        assert record["decision"]["mode"] == "planned"
        assert "the search is slow" in record["decision"]["reason"]
        marked = next(r for r in site.records() if r["id"] == undone["id"])
        assert marked["undone_by"] == record["id"]

    def test_what_was_taken_back_is_no_target_and_nothing_else_is_left_to_undo(self, site):
        done = site.playbook("status")
        assert "rollback would go to: v2.7" not in done.output

    def test_what_must_be_absent_and_is_not_ends_the_rollback_with_a_person(self, site, step, after):
        deployed = step("deploy", "-e", "version=v2.7")
        assert deployed.run.code == 0, str(deployed.run)
        done = step("rollback", "-e", '{"app_rollback_absent": ["/healthz/"]}')
        assert done.run.code == 2
        done.run.line("rollback: prove on .*expected status 404 or 410, but it was 200")
        after(done, "v2.6")
        again = step("rollback", "-e", "rollback_mode=emergency")
        assert again.run.code == 0, str(again.run)
        assert site.records()[0]["decision"]["left_out"]
        after(again, "v2.6")
        # What the emergency left out is proved later, and what is not as it must be is found.
        ill = step("rollback", "--tags", "verify", "-e", '{"app_rollback_absent": ["/healthz/"]}')
        assert ill.run.code == 2
        assert "expected status 404 or 410, but it was 200" in ill.run.output
        wrong = '{"app_gates": [{"kind": "command", "name": "regression", "command": ["false"], "moments": ["rollback"]}]}'
        ill = step("rollback", "--tags", "verify", "-e", wrong)
        assert ill.run.code == 2
        assert "regression" in ill.run.output
        well = step("rollback", "--tags", "verify")
        assert well.run.code == 0, str(well.run)
        after(well, "v2.6")

    def test_migrations_alone(self, site, step, after):
        deployed = step("deploy", "-e", "version=v2.7")
        assert deployed.run.code == 0, str(deployed.run)
        assert has_note(site)
        done = step("rollback", "--tags", "migrations", *CONSENT)
        # What an earlier rollback left applied was not applied by this deployment, and stays.
        assert done.run.code in (0, 2), str(done.run)
        after(done, "v2.6" if done.run.code == 0 else "v2.7")

    def test_without_consent_a_loss_of_writes_is_a_matter_for_a_person(self, site, step, after):
        done = step("deploy", "-e", "version=destructive-broken", *LATE)
        assert done.run.code == 2
        assert "STOPPED: A PERSON IS NEEDED" in done.run.report, str(done.run)
        done.run.line("decision +stop: .*rollback_consent=true")
        assert site.ask("/").version == "destructive-broken"
        refused = step("rollback", "--tags", "restore")
        assert refused.run.code == 2
        assert "rollback_consent=true" in refused.run.report

    def test_restore_alone(self, site, step, after, timed):
        serving = [r["version"] for r in site.records() if r["verdict"] == "success" and not r["undone_by"]][
            0
        ]
        done = step("rollback", "--tags", "restore", *CONSENT)
        assert done.run.code == 0, str(done.run)
        timed("restore", done.run.seconds, 1800)
        after(done, serving, restored=True)
        assert site.gone


@pytest.mark.short
def test_every_record_is_as_the_published_schema_has_it(site):
    records = on_host(site)
    assert {"deployment", "rollback"} <= {record["kind"] for record in records.values()}
    assert unlike_schema(records) == []
