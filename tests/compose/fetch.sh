#!/usr/bin/env bash
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Compose v2 for the docker command, from Debian's package docker-compose of a suite that has it, without installing that package.
# Usage: fetch.sh DIRECTORY. Nothing is done where "docker compose" answers; root gets the plugin in /usr/local/lib/docker/cli-plugins.
# COMPOSE_MIRROR: another Debian mirror; COMPOSE_SUITE: another suite whose docker-compose is version 2.
set -eu -o pipefail

if version=$(docker compose version --short 2>/dev/null); then
    echo "Compose $version is there"
    exit 0
fi
mkdir -p "$1"
base=$(cd "$1" && pwd)
mirror=${COMPOSE_MIRROR:-http://deb.debian.org/debian}
suite=${COMPOSE_SUITE:-trixie}
keys=/usr/share/keyrings/debian-archive-keyring.gpg
plugins=/usr/local/lib/docker/cli-plugins

if [ "$(id -u)" != 0 ]; then
    echo "there is no Compose v2 for the docker command: install it (Debian: docker-compose of trixie), or run this as root once" >&2
    exit 1
fi
for need in apt-get dpkg-deb "$keys"; do
    if ! command -v "$need" >/dev/null && [ ! -e "$need" ]; then
        echo "$need is missing: Compose can be fetched and verified on Debian (or with its debian-archive-keyring) only" >&2
        exit 1
    fi
done
rm -rf "$base/apt" "$base/root"
mkdir -p "$base/apt/etc/preferences.d" "$base/apt/etc/apt.conf.d" "$base/apt/state/lists/partial" "$base/apt/cache/archives/partial" "$base/root"
: >"$base/apt/status"
echo "deb [signed-by=$keys] $mirror $suite main" >"$base/apt/etc/sources.list"
# A private place for lists and archives. A mirror that stands still is as good for a test, so its date does not count.
cat >"$base/apt/apt.conf" <<EOF
Dir::State "$base/apt/state";
Dir::State::status "$base/apt/status";
Dir::Cache "$base/apt/cache";
Dir::Etc "$base/apt/etc";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::Retries "3";
Debug::NoLocking "true";
EOF
export APT_CONFIG="$base/apt/apt.conf"
apt-get -qq update
(cd "$base/apt/cache" && apt-get -qq download docker-compose)
dpkg-deb -x "$base"/apt/cache/docker-compose_*.deb "$base/root"
program=$(find "$base/root" -name docker-compose -type f -size +1M -print -quit)
mkdir -p "$plugins"
install -m 0755 "$program" "$plugins/docker-compose.new"
mv "$plugins/docker-compose.new" "$plugins/docker-compose"
rm -rf "$base/apt" "$base/root"
echo "Compose $(docker compose version --short) was put into $plugins"
