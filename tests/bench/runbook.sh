#!/bin/sh
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# The deployment as a careful person does it by hand: the runbook's own commands, in one ssh session, as root.
#     runbook.sh prepare REPOSITORY ADDRESS   once: user, directories, unit, web server on port 8080; not timed
#     runbook.sh deploy VERSION
#     runbook.sh rollback
# Everything is in a directory, a unit and a port of its own, beside what the collection deploys on the same host.
set -eu
base=/srv/runbook
user=runbook
unit=goexplorer-runbook.service
database=$base/shared/data/goexplorer.sqlite3
export LC_ALL=C

as_user() {
    runuser -u $user -- env $(cat $base/shared/environment) "$@"
}

healthy() {
    tries=0
    until curl --silent --fail --output /dev/null --max-time 5 --header "Host: $(cat $base/shared/address)" \
        http://127.0.0.1:8080/healthz/; do
        tries=$((tries + 1))
        if [ $tries -gt 300 ]; then
            echo "http://127.0.0.1:8080/healthz/ did not answer 200 within 300 tries" >&2
            exit 1
        fi
        sleep 0.1
    done
}

prepare() {
    repository=$1
    address=$2
    useradd --system --home-dir $base --no-create-home --shell /usr/sbin/nologin $user
    install -d $base $base/releases $base/backups $base/shared
    install -d -o $user -g $user $base/shared/data $base/shared/media $base/run
    git clone --quiet --bare "$repository" $base/repository.git
    echo "$address" > $base/shared/address
    install -m 0640 -g $user /dev/null $base/shared/environment
    cat > $base/shared/environment <<END
DJANGO_SETTINGS_MODULE=goexplorer.settings
GOEXPLORER_SECRET_KEY=a-key-of-the-benchmark-that-protects-nothing-at-all-0123456789
GOEXPLORER_ADMIN_PASSWORD=admin-of-the-benchmark
GOEXPLORER_OWNER_PASSWORD=owner-of-the-benchmark
GOEXPLORER_DATABASE=$database
GOEXPLORER_MEDIA=$base/shared/media
GOEXPLORER_ALLOWED_HOSTS=$address,127.0.0.1
END
    cat > /etc/systemd/system/$unit <<END
[Unit]
Description=GoExplorer, deployed by hand
After=network.target

[Service]
User=$user
WorkingDirectory=$base/current
EnvironmentFile=$base/shared/environment
ExecStart=$base/current/.venv/bin/gunicorn goexplorer.wsgi --workers 2 --bind unix:$base/run/web.sock
Restart=always

[Install]
WantedBy=multi-user.target
END
    cat > /etc/nginx/conf.d/goexplorer-runbook.conf <<END
server {
    listen 8080;
    location /static/ { alias $base/current/staticfiles/; }
    location / {
        proxy_pass http://unix:$base/run/web.sock;
        proxy_set_header Host \$host;
    }
}
END
    systemctl daemon-reload
    systemctl --quiet enable $unit
    systemctl reload nginx
}

deploy() {
    version=$1
    # The code.
    git -C $base/repository.git fetch --quiet --prune --tags origin '+refs/heads/*:refs/heads/*'
    commit=$(git -C $base/repository.git rev-parse --verify "$version^{commit}")
    release=$base/releases/$(date +%Y%m%dT%H%M%S)-$commit
    mkdir "$release"
    git -C $base/repository.git archive "$commit" | tar -x -C "$release"
    # Its environment.
    python3 -m venv "$release/.venv"
    "$release/.venv/bin/pip" install --quiet --disable-pip-version-check --no-index --find-links /wheels \
        -r "$release/requirements.txt"
    ln -sfn $base/shared/media "$release/media"
    install -d -o $user -g $user "$release/staticfiles"
    cd "$release"
    # The data, before anything is changed.
    if [ -e $database ]; then
        sqlite3 $database ".backup '$base/backups/$(basename "$release").sqlite3'"
    fi
    # Is it in order; then the schema and the static files.
    as_user .venv/bin/python manage.py check --deploy --fail-level ERROR
    as_user .venv/bin/python manage.py migrate --noinput --verbosity 0
    as_user .venv/bin/python manage.py collectstatic --noinput --verbosity 0
    # Live.
    if [ -L $base/current ]; then
        ln -sfn "$(readlink $base/current)" $base/previous
    fi
    ln -sfn "$release" $base/current
    systemctl restart $unit
    healthy
}

rollback() {
    ln -sfn "$(readlink $base/previous)" $base/current
    systemctl restart $unit
    healthy
}

command=$1
shift
$command "$@"
