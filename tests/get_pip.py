# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of get-pip.py that ansible-test needs, for machines that reach package registries and nothing else.

ansible-test runs a downloaded get-pip.py to put pip into its environments. This does the same with the pip that
Python brings: in a process of its own, because ensurepip leaves an environment in which pip reads no configuration.
"""

import subprocess
import sys

subprocess.run([sys.executable, "-m", "ensurepip", "--upgrade"], check=True)
wanted = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.run([sys.executable, "-m", "pip", "install", *wanted], check=False).returncode)
