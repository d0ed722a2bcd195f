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
plugins=/usr/local/lib/docker/cli-plugins

if [ "$(id -u)" != 0 ]; then
    echo "there is no Compose v2 for the docker command: install it (Debian: docker-compose of trixie), or run this as root once" >&2
    exit 1
fi
# shellcheck source=tests/debian/unpack.sh
. "$(dirname "$0")/../debian/unpack.sh"
mkdir -p "$1"
base=$(cd "$1" && pwd)
unpack "$base" "${COMPOSE_MIRROR:-http://deb.debian.org/debian}" "${COMPOSE_SUITE:-trixie}" docker-compose
program=$(find "$base/root" -name docker-compose -type f -size +1M -print -quit)
mkdir -p "$plugins"
install -m 0755 "$program" "$plugins/docker-compose.new"
mv "$plugins/docker-compose.new" "$plugins/docker-compose"
rm -rf "$base/root" "$base/bin.new"
echo "Compose $(docker compose version --short) was put into $plugins"
