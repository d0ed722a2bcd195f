#!/usr/bin/env bash
# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# make_venv.sh PYTHON DIRECTORY REQUIREMENTS: a virtual environment with the requirements, by uv, or by pip where uv finds no index.
set -eu -o pipefail
python=$1 directory=$2 requirements=$3

# The Makefile puts the environment first on the path; it cannot be made from the one that is about to be replaced.
PATH=:$PATH:
while [[ $PATH == *":$PWD/$directory/bin:"* ]]; do # a make called by make has put it there twice
    PATH=${PATH/":$PWD/$directory/bin:"/:}
done
PATH=${PATH#:} PATH=${PATH%:}

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
    echo "venv: $python is $("$python" --version 2>&1 || true); ansible-core 2.19 needs Python 3.11, 3.12 or 3.13: install one (apt-get install python3) or name it (make PYTHON=python3.11)." >&2
    exit 1
fi

rm -rf "$directory"
if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv "$directory"
elif "$python" -m pip --version >/dev/null 2>&1; then
    # Debian keeps ensurepip in a package of its own (python3-venv); the machine's pip can fill an environment as well.
    "$python" -m venv --without-pip "$directory"
    "$python" -m pip --python "$directory/bin/python" install -q --disable-pip-version-check pip
else
    echo "venv: $python has neither ensurepip nor pip, so no virtual environment can be made; install one (apt-get install python3-venv)." >&2
    exit 1
fi
"$directory/bin/python" -m pip install -q --disable-pip-version-check "$(grep -E '^uv\b' "$requirements")"

# uv does not read pip's configuration, where a company's own index is named.
index=$("$directory/bin/python" -m pip config get global.index-url 2>/dev/null || true)
if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then
    export UV_DEFAULT_INDEX=$index
fi
if ! "$directory/bin/uv" pip install -q --python "$directory/bin/python" -r "$requirements"; then
    echo "venv: uv could not install $requirements; trying pip" >&2
    "$directory/bin/python" -m pip install -q --disable-pip-version-check -r "$requirements"
fi

# uv compiles nothing, and what starts an interpreter anew for each test (Django's manage.py, Alembic, ansible-playbook) must
# not write bytecode into an application's environment, or is told so by PYTHONDONTWRITEBYTECODE: each start would compile
# all that it imports, which is more than half of its time. Left out is what is large and imported seldom.
seldom='ansible_collections|ansible_test|cfnlint|graphql|hypothesis|moto|mpmath|networkx|numpy|pip|pkg_resources|pygments|setuptools|sympy'
packages=$("$directory/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$directory/bin/python" -m compileall -q -j 0 -x "site-packages/($seldom)/|/tests?/" "$packages" ||
    echo "venv: some packages could not be compiled; they work, but start slowly" >&2
