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
# shellcheck source=tests/debian/unpack.sh
. "$(dirname "$0")/../debian/unpack.sh"

if [ -x "$base/bin/mysqld" ]; then
    echo "$("$base/bin/mysqld" --version) is in $base"
    exit 0
fi
unpack "$base" "${MYSQL_MIRROR:-http://deb.debian.org/debian}" "${MYSQL_SUITE:-sid}" mysql-server-core mysql-client-core
share=$(find "$base/root/usr/share" -maxdepth 1 -name 'mysql*' -type d -print -quit)
# --no-defaults has to be the first of the options, so that these are the last.
wrap "$base" mysqld "'--basedir=$base/root/usr' '--plugin-dir=$base/root/usr/lib/mysql/plugin' '--lc-messages-dir=$share' '--character-sets-dir=$share/charsets'"
wrap "$base" mysql
wrap "$base" mysqldump
mv "$base/bin.new" "$base/bin"
"$base/bin/mysqld" --version
