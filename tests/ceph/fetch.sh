#!/usr/bin/env bash
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Ceph's server for S3 (the RADOS gateway), of Debian 13, unpacked into a directory: nothing is installed, no root is needed.
# Usage: fetch.sh DIRECTORY. Afterwards DIRECTORY/bin has radosgw and radosgw-admin.
# CEPH_MIRROR: another Debian mirror; CEPH_SUITE: another suite, with a gateway of release 18 or later.
set -eu -o pipefail

mkdir -p "$1"
base=$(cd "$1" && pwd)
# shellcheck source=tests/debian/unpack.sh
. "$(dirname "$0")/../debian/unpack.sh"

if [ -x "$base/bin/radosgw" ]; then
    echo "$("$base/bin/radosgw" --version) is in $base"
    exit 0
fi
unpack "$base" "${CEPH_MIRROR:-http://deb.debian.org/debian}" "${CEPH_SUITE:-trixie}" radosgw
wrap "$base" radosgw "" ceph
wrap "$base" radosgw-admin "" ceph
mv "$base/bin.new" "$base/bin"
"$base/bin/radosgw" --version
