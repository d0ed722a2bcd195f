#!/usr/bin/env bash
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# MySQL's own server and clients, of Debian unstable, unpacked into a directory: nothing is installed, no root is needed.
# Usage: fetch.sh DIRECTORY. Afterwards DIRECTORY/bin has mysqld, mysql and mysqldump.
# MYSQL_MIRROR: another Debian mirror; MYSQL_SUITE: another suite that has mysql-server-core.
set -eu -o pipefail

mkdir -p "$1"
base=$(cd "$1" && pwd)
mirror=${MYSQL_MIRROR:-http://deb.debian.org/debian}
suite=${MYSQL_SUITE:-sid}
keys=/usr/share/keyrings/debian-archive-keyring.gpg

if [ -x "$base/bin/mysqld" ]; then
    echo "$("$base/bin/mysqld" --version) is in $base"
    exit 0
fi
for need in apt-get dpkg-deb "$keys"; do
    if ! command -v "$need" >/dev/null && [ ! -e "$need" ]; then
        echo "$need is missing: MySQL's packages can be fetched and verified on Debian (or with its debian-archive-keyring) only" >&2
        exit 1
    fi
done
rm -rf "$base/apt" "$base/root" "$base/bin" "$base/bin.new"
mkdir -p "$base/apt/etc/preferences.d" "$base/apt/etc/apt.conf.d" "$base/apt/state/lists/partial" "$base/apt/cache/archives/partial" \
    "$base/root" "$base/bin.new"
: >"$base/apt/status"
echo "deb [signed-by=$keys] $mirror $suite main" >"$base/apt/etc/sources.list"
# A private place for lists and archives. A mirror that stands still is as good for a test, so its date does not count.
cat >"$base/apt/apt.conf" <<EOF
Dir::State "$base/apt/state";
Dir::State::status "$base/apt/status";
Dir::Cache "$base/apt/cache";
Dir::Etc "$base/apt/etc";
APT::Sandbox::User "";
APT::Install-Recommends "false";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
Acquire::Retries "3";
Debug::NoLocking "true";
EOF
export APT_CONFIG="$base/apt/apt.conf"
apt-get -qq update
apt-get -qq --yes --download-only install mysql-server-core mysql-client-core
for archive in "$base"/apt/cache/archives/*.deb; do
    case ${archive##*/} in
    perl* | libperl*) ;; # of scripts that nobody runs here
    *) dpkg-deb -x "$archive" "$base/root" ;;
    esac
done
rm -rf "$base/apt"

# These programs need the C library that came with them.
loader=$(find "$base/root" -name 'ld-linux*.so.*' ! -type l -print -quit)
libraries=$(find "$base/root" -name libc.so.6 -printf '%h' -quit)
share=$(find "$base/root/usr/share" -maxdepth 1 -name 'mysql*' -type d -print -quit)
wrap() { # wrap PROGRAM OPTIONS: these come last, as --no-defaults has to be the first
    program=$(find "$base/root/usr/bin" "$base/root/usr/sbin" -name "$1" -print -quit)
    cat >"$base/bin.new/$1" <<EOF
#!/bin/sh
exec "$loader" --library-path "$libraries" "$program" "\$@" $2
EOF
    chmod 755 "$base/bin.new/$1"
}
wrap mysqld "'--basedir=$base/root/usr' '--plugin-dir=$base/root/usr/lib/mysql/plugin' '--lc-messages-dir=$share' '--character-sets-dir=$share/charsets'"
wrap mysql ""
wrap mysqldump ""
mv "$base/bin.new" "$base/bin"
"$base/bin/mysqld" --version
