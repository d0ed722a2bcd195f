#!/bin/sh
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Makes a bare Debian into a machine that boots: systemd as process 1, ssh by key, what a web server needs, database servers, a broker, a balancer.
# Runs as root inside a container of the base image; /machine holds the apt settings of the machine that builds.
set -eu
export DEBIAN_FRONTEND=noninteractive
# The database servers' packages make clusters with the encoding that they find here.
export LANG=C.UTF-8

# Nothing may start while packages are installed; removed again below, or services would never start later.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 0755 /usr/sbin/policy-rc.d
cat > /etc/dpkg/dpkg.cfg.d/small <<'END'
force-unsafe-io
path-exclude=/usr/share/doc/*
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
END
rm -f /etc/apt/apt.conf.d/docker-gzip-indexes

# The machine's settings (proxies, certificates, a mirror) are for the build only and do not stay in the image.
export APT_CONFIG=/machine/apt.conf
sources=""
if [ -s /machine/sources.list ]; then
    sources="-o Dir::Etc::sourcelist=/machine/sources.list -o Dir::Etc::sourceparts=/dev/null"
fi
# shellcheck disable=SC2086
apt-get -q $sources update
# shellcheck disable=SC2086
apt-get -q -y $sources --no-install-recommends install \
    systemd systemd-sysv dbus python3 python3-venv git nginx openssh-server sqlite3 procps iproute2 curl \
    ca-certificates sudo rsync postgresql mariadb-server redis-server haproxy libfaketime zstd
apt-get clean
rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d

# A container has no console, no devices of its own and no clock to set.
systemctl mask console-getty.service getty@.service systemd-udevd.service systemd-timesyncd.service \
    systemd-udev-trigger.service systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer
systemctl set-default multi-user.target

# Each container makes host keys of its own at its first boot and keeps them through later ones.
rm -f /etc/ssh/ssh_host_*
cat > /etc/systemd/system/ssh-host-keys.service <<'END'
[Unit]
Description=Host keys for ssh
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
RemainAfterExit=yes

[Install]
WantedBy=multi-user.target
END
systemctl enable ssh-host-keys.service ssh.service nginx.service
cat > /etc/ssh/sshd_config.d/tests.conf <<'END'
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
MaxStartups 100
END

# The scenarios that need a server start it; to the others it is a program that nobody runs.
systemctl disable postgresql.service mariadb.service redis-server.service haproxy.service

# The person who deploys: not root, sudo without a password.
useradd --create-home --shell /bin/bash deploy
echo 'deploy ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/deploy
chmod 0440 /etc/sudoers.d/deploy

# An identity of its own for every container, as for every machine.
rm -f /etc/machine-id /var/lib/dbus/machine-id
touch /etc/machine-id
