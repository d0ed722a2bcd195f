#!/bin/sh
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# certify.sh DAYS: a certificate for parcels.example that is valid so long, of an authority of this host's own, which is made at the first call.
set -eu
days=$1
cd /etc/nginx
umask 077
if [ ! -e authority.crt ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj '/CN=Authority of the tests' \
        -keyout authority.key -out authority.crt
    cp authority.crt /usr/local/share/ca-certificates/tests.crt
    chmod 0644 /usr/local/share/ca-certificates/tests.crt
    update-ca-certificates
fi
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=parcels.example -keyout site.key.new -out site.csr
printf 'subjectAltName=DNS:parcels.example\nbasicConstraints=CA:FALSE\n' >site.ext
openssl x509 -req -in site.csr -CA authority.crt -CAkey authority.key -CAcreateserial -days "$days" -extfile site.ext -out site.crt.new
mv site.key.new site.key
mv site.crt.new site.crt
nginx -t
if systemctl is-active --quiet nginx.service; then
    nginx -s reload
fi
