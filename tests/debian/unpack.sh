# shellcheck shell=bash
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Sourced by scripts that need programs of another Debian than this machine's: nothing is installed, no root is needed.

# unpack DIRECTORY MIRROR SUITE PACKAGE …: the packages, and those that they need, with verified signatures, below DIRECTORY/root.
unpack() {
    local base=$1 mirror=$2 suite=$3 need archive
    local keys=/usr/share/keyrings/debian-archive-keyring.gpg
    shift 3
    for need in apt-get dpkg-deb "$keys"; do
        if ! command -v "$need" >/dev/null && [ ! -e "$need" ]; then
            echo "$need is missing: $* can be fetched and verified on Debian (or with its debian-archive-keyring) only" >&2
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
    apt-get -qq --yes --download-only install "$@"
    for archive in "$base"/apt/cache/archives/*.deb; do
        case ${archive##*/} in
        perl* | libperl* | python* | libpython*) ;; # of scripts that nobody runs here
        *) dpkg-deb -x "$archive" "$base/root" ;;
        esac
    done
    rm -rf "$base/apt"
}

# wrap DIRECTORY PROGRAM [OPTIONS [LIBRARIES]]: DIRECTORY/bin.new/PROGRAM, which runs it with the C library that came with it, and
# with the libraries of the package in LIBRARIES.
# The options come last; the caller renames bin.new to bin when all is there.
wrap() {
    local base=$1 program loader libraries
    loader=$(find "$base/root" -name 'ld-linux*.so.*' ! -type l -print -quit)
    libraries=$(find "$base/root" -name libc.so.6 -printf '%h' -quit)
    program=$(find "$base/root/usr/bin" "$base/root/usr/sbin" -name "$2" -print -quit)
    if [ -z "$loader" ] || [ -z "$libraries" ] || [ -z "$program" ]; then
        echo "$2 is not in the packages, or came without a C library: name another suite" >&2
        exit 1
    fi
    cat >"$base/bin.new/$2" <<EOF
#!/bin/sh
exec "$loader" --library-path "$libraries${4:+:$libraries/$4}" "$program" "\$@" ${3:-}
EOF
    chmod 755 "$base/bin.new/$2"
}
