#!/usr/bin/python
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_store
short_description: Copy backups of the database to an object store, prove the copies, and bring them back
version_added: 0.1.0
author: The runbook.deploy authors (@runbook-deploy)
description:
  - Copies a backup of M(runbook.deploy.database_backup) to a store that speaks S3, below C(<prefix>/<application>/<stage>/<id>/),
    downloads it again, and compares what came back with the manifest. Only then the manifest follows; what has no manifest in
    the store is no copy. Where the copy is and when it was proved is written into the manifest on the host, and into the record.
  - Speaks with the store by boto3, in an environment of its own below C(environments/), which is built as those of the
    application's releases are. Nothing is installed for the application.
  - The process has the keys in its own variables only. It runs as the user of the task, who owns the backups.
  - What killed runs have left of uploads is removed by the next run. Nothing is touched outside of the prefix, the application and the stage.
  - Warns of each enabled lifecycle rule of the bucket that deletes copies, or moves them into a class from which they must be restored first, with
    O(state=ready), O(state=present) and O(state=verified). O(store.keep) and O(store.keep_days) cannot hold against such a rule.
attributes:
  check_mode:
    support: full
    description: Reads from the store and changes nothing; where the environment of boto3 is not built yet, the store is not asked.
  diff_mode:
    support: none
    description: Nothing that is shown as text is changed.
  idempotent:
    support: full
    description: A copy that is there is compared, and uploaded again only where it is no more what was backed up.
options:
  root:
    description: The directory of the application, C(app_root).
    type: path
    required: true
  state:
    description:
      - V(ready) builds the environment and asks whether the store answers and knows the keys.
      - V(present) copies the backup O(id), proves the copy, and then removes what O(store.keep) leaves no place for.
      - V(verified) downloads copies without keeping them, and compares each with its manifest.
      - V(fetched) brings the copy of O(id) back into C(backups/) where it is missing or damaged.
      - V(listed) lists the backups of the host and of the store.
      - V(absent) removes the copies that O(store.keep) and O(store.keep_days) leave no place for, and none that a rollback may need.
    type: str
    choices: [ready, present, verified, fetched, listed, absent]
    required: true
  application:
    description: The application's name, C(app_name); a part of the keys in the store.
    type: str
    required: true
  stage:
    description: The stage, C(app_stage); a part of the keys in the store.
    type: str
    required: true
  store:
    description: The store, C(app_backup_store).
    type: dict
    required: true
    suboptions:
      endpoint:
        description: The address of a server that speaks S3, such as V(https://s3.example.org). AWS when empty.
        type: str
        default: ""
      bucket:
        description: The bucket, which must exist.
        type: str
        required: true
      prefix:
        description: What the keys begin with.
        type: str
        default: ""
      region:
        description: The region of the bucket. C(us-east-1) when empty.
        type: str
        default: ""
      access_key:
        description: The id of the access key. Without one the host's own role is used, as boto3 finds it.
        type: str
        default: ""
      secret_key:
        description: The secret of the access key.
        type: str
        default: ""
      ca_path:
        description: File on the host with the certificates of the authorities to trust instead of those of boto3.
        type: str
        default: ""
      proxy:
        description: The address of a proxy on the way to the store.
        type: str
        default: ""
      required:
        description: Whether it is a failure when the store cannot be had. Otherwise RV(degraded) says so with O(state=ready) and O(state=present).
        type: bool
        default: true
      keep:
        description: How many copies to keep, of all kinds; V(0) removes none.
        type: int
        default: 10
      keep_days:
        description: With O(store.keep), days after which a copy goes, too, except for the newest three; V(0) for none.
        type: int
        default: 0
      server_side_encryption:
        description: How the store is asked to encrypt, V(AES256), V(aws:kms) or V(aws:kms:dsse); as the bucket does by itself when empty.
        type: str
        default: ""
      timeout:
        description: Seconds for everything together, without building the environment.
        type: int
        default: 3600
  id:
    description: The backup, for O(state=present) and O(state=fetched).
    type: str
  ids:
    description: The copies to verify, for O(state=verified); V(all) for each, the newest one when empty.
    type: list
    elements: str
    default: []
  python:
    description: The interpreter to build the environment with, C(app_python).
    type: str
    default: python3
  build_environment:
    description: Variables for the installer, C(app_build_environment), as one JSON object in a string. They are kept out of all output.
    type: str
  uv:
    description: The uv to build with. The one in PATH or of setup when not given, else pip.
    type: str
  record:
    description: The deployment whose record this phase is written into, as returned by M(runbook.deploy.deployment_record).
    type: dict
"""

EXAMPLES = r"""
- name: Copy the backup that was just taken
  runbook.deploy.backup_store:
    root: /srv/shop
    state: present
    application: shop
    stage: production
    store:
      endpoint: https://s3.example.org
      bucket: backups
      access_key: "{{ vault_backup_access_key }}"
      secret_key: "{{ vault_backup_secret_key }}"
    id: "{{ backup_result.backup.id }}"

- name: Bring a backup back to a host that lost it
  runbook.deploy.backup_store:
    root: /srv/shop
    state: fetched
    application: shop
    stage: production
    store: "{{ app_backup_store }}"
    id: 20261121T013700-ab12
"""

RETURN = r"""
store:
  description: Where the copy of O(id) is; null where there is none.
  returned: success, with O(state=present) or O(state=fetched)
  type: dict
  contains:
    location:
      description: The address of the dump, as the tools of S3 write it.
      type: str
    endpoint:
      description: The server; empty for AWS.
      type: str
    size:
      description: The bytes that came back.
      type: int
    sha256:
      description: The checksum of what came back.
      type: str
    verified_at:
      description: When it came back, in UTC.
      type: str
    seconds:
      description: How long copying and comparing took.
      type: float
  sample:
    location: s3://backups/shop/production/20261121T013700-ab12/shop.dump
    endpoint: https://s3.example.org
    size: 8388608
    sha256: 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824
    verified_at: "2026-11-21T01:37:09Z"
    seconds: 2.4
degraded:
  description: Why there is no copy, where O(store.required) is false; else an empty text.
  returned: success, with O(state=ready) or O(state=present)
  type: str
backups:
  description: Each backup of the host or the store, newest first.
  returned: success, with O(state=listed)
  type: list
  elements: dict
  contains:
    id:
      description: Its name.
      type: str
    created:
      description: When it was begun, in UTC.
      type: str
    kind:
      description: V(deployment), V(manual) or V(safety).
      type: str
    size:
      description: The bytes of the dump.
      type: int
    here:
      description: Whether it is on the host.
      type: bool
    store:
      description: V(yes), V(no), V(unfinished) where the manifest is missing in the store, or V(different) where it is the copy of another dump.
      type: str
    location:
      description: The address of the dump in the store.
      type: str
    proved:
      description: When the copy was last compared, in UTC.
      type: str
text:
  description: The same as a table for people.
  returned: success, with O(state=listed) or O(state=verified)
  type: str
states:
  description: What was found of each copy that was verified, V(intact) or V(FAILED).
  returned: with O(state=verified)
  type: dict
failures:
  description: A sentence for each copy that is not what it should be.
  returned: with O(state=verified)
  type: list
  elements: str
gone:
  description: The backups of this host whose copies were proved and are no longer there, though no retention of this host has removed them.
  returned: with O(state=verified)
  type: list
  elements: str
removed:
  description: The backups whose copies retention removed, or would remove.
  returned: success, with O(state=present) or O(state=absent)
  type: list
  elements: str
lifecycle:
  description: What rules of the bucket do with copies; null where the store was not asked or could not be had.
  returned: with O(state=ready), O(state=present) or O(state=verified), except for a failure of the store
  type: dict
  contains:
    rules:
      description: Each action that makes copies unreadable before retention would remove them.
      type: list
      elements: dict
      contains:
        id:
          description: The rule's name in the bucket; empty where it has none.
          type: str
        prefix:
          description: What the keys begin with that the rule reaches; empty for the whole bucket.
          type: str
        storage_class:
          description: V(GLACIER) or V(DEEP_ARCHIVE), where objects must be restored before they can be read; empty where they are deleted.
          type: str
        days:
          description: Days after which this is done; null where it is done at a date.
          type: int
        date:
          description: The date from which on this is done; empty where it is done after some days.
          type: str
    unseen:
      description: Why the rules could not be read, such as V(AccessDenied) or V(NotImplemented); empty where they could.
      type: str
msg:
  description: What was done, or would be done, or why it failed, in one sentence.
  returned: always
  type: str
evidence:
  description: What the store or the installer said.
  returned: failure
  type: str
"""


from ansible.module_utils.basic import AnsibleModule
from ansible_collections.runbook.deploy.plugins.module_utils._command import parse_environment
from ansible_collections.runbook.deploy.plugins.module_utils._problem import Problem, of_system
from ansible_collections.runbook.deploy.plugins.module_utils._store_session import StoreFault
from ansible_collections.runbook.deploy.plugins.module_utils._store_spec import OPTIONS
from ansible_collections.runbook.deploy.plugins.module_utils._store_work import degraded, perform


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "state": {
                "type": "str",
                "required": True,
                "choices": ["ready", "present", "verified", "fetched", "listed", "absent"],
            },
            "application": {"type": "str", "required": True},
            "stage": {"type": "str", "required": True},
            "store": {"type": "dict", "required": True, "options": OPTIONS},
            "id": {"type": "str"},
            "ids": {"type": "list", "elements": "str", "default": []},
            "python": {"type": "str", "default": "python3"},
            "build_environment": {"type": "str", "no_log": True},
            "uv": {"type": "str"},
            "record": {"type": "dict"},
        },
        required_if=[("state", "present", ["id"]), ("state", "fetched", ["id"])],
        supports_check_mode=True,
    )
    try:
        build = parse_environment(module.params["build_environment"], "build_environment")
        answer = perform(module.params, build, module.check_mode)
    except StoreFault as fault:
        if module.params["state"] not in ("ready", "present") or module.params["store"]["required"]:
            module.fail_json(**fault.answer())
        answer = degraded(fault, module.params["state"])
    except Problem as problem:
        module.fail_json(**problem.answer())
    except OSError as error:
        module.fail_json(**of_system(error, module.params["root"]).answer())
    for warning in answer.pop("warnings"):
        module.warn(warning)
    if answer.get("failures"):
        module.fail_json(evidence="\n".join(answer["failures"]), **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
