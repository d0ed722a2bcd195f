# Copyright (c) The runbook.deploy authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options that describe services, and the installation that ran them before."""

from __future__ import annotations


class ModuleDocFragment:
    """``SERVICE`` and ``ADOPT`` of ``_service_options.py``, described."""

    DOCUMENTATION = r"""
options:
  services:
    description:
      - The services of this host. When it is not given, the instance is started again as its own files describe it, with its own
        settings; O(environment), O(health_checks) and the like are then not looked at.
    type: list
    elements: dict
    suboptions:
      name:
        description: Its name, part of the names of its unit, socket and log.
        type: str
        required: true
      kind:
        description: What it is. A V(beat) runs at most once at any time.
        type: str
        choices: [web, worker, beat]
        default: web
      manager:
        description:
          - What starts it. V(process) needs no service manager, and does not come back after a reboot.
          - V(compose) is a service of the Compose file in the release, run from the image that M(runbook.deploy.compose_image) wrote down
            in the release. It has a port or is no web service.
        type: str
        choices: [systemd, supervisor, compose, process]
        default: systemd
      strategy:
        description:
          - V(blue_green) starts the new instance at an address of its own and switches, without a lost request. Only with a socket.
          - V(restart) stops the old one first, after the new one was tried at a private address.
          - V(reload) lets O(state=reloaded) send HUP, on which a server such as gunicorn starts new workers under the same main process.
            That main process goes on with the code and the variables it was started with, so a deployment does as for V(blue_green)
            where the service has a socket, else as for V(restart).
          - By default V(blue_green) for a web service with a socket, else V(restart).
        type: str
        choices: [blue_green, restart, reload]
      bind:
        description: Where a web service listens; by default V(port) when O(services[].port) is given, else V(socket).
        type: str
        choices: [socket, port, none]
      port:
        description: Its TCP port with O(services[].bind=port).
        type: int
        default: 0
      command:
        description:
          - Its command, split into words as a shell would, but run without one. The first word is looked up in the environment's C(bin).
          - The placeholders C({socket}), C({port}), C({release}), C({environment}), C({deployment}), C({commit}) and C({root}) are
            replaced.
          - Every service needs one but those with O(services[].manager=compose), whose Compose file or image has it.
        type: str
        default: ''
      trial:
        description: With O(services[].strategy=restart), whether the new release is first tried at a private address.
        type: bool
        default: true
      groups:
        description: Not looked at; allowed, so that entries of C(app_services) can be passed on as they are.
        type: list
        elements: str
        default: []
      stop_timeout:
        description: Seconds from TERM to KILL. Under systemd the unit's own C(TimeoutStopSec) counts, which setup writes from it.
        type: int
        default: 30
      celery:
        description:
          - For a worker, the application as C(celery -A) takes it. By default what its command says, where that is C(celery … worker).
          - An empty text for a worker that is not asked, but only stopped and started.
        type: str
      drain_timeout:
        description: Seconds for a Celery worker to finish its tasks before it is sent TERM; by default O(drain_timeout).
        type: int
      supervisor_config:
        description: With O(services[].manager=supervisor), the configuration of supervisord, which says where it is reached.
        type: path
        default: /etc/supervisor/supervisord.conf
      supervisor_include:
        description:
          - With O(services[].manager=supervisor), the directory whose C(*.conf) that configuration includes. The service gets a section
            there for each of its instances.
        type: path
        default: /etc/supervisor/conf.d
      compose_project:
        description: With O(services[].manager=compose), the name of the Compose project; by default C(<name>-<stage>).
        type: str
        default: ''
      compose_file:
        description: With O(services[].manager=compose), the Compose file, relative to the directory in which services start.
        type: str
        default: compose.yaml
      compose_service:
        description: With O(services[].manager=compose), the service in that file; by default the name of this one.
        type: str
        default: ''
      image:
        description: With O(services[].manager=compose), its image instead of what the Compose file says; see M(runbook.deploy.compose_image).
        type: str
        default: ''
  adopt:
    description: The installation that ran the application before this collection did (C(app_adopt)).
    type: dict
    suboptions:
      path:
        description: Its directory.
        type: str
      service:
        description: Its systemd unit.
        type: str
      environment_file:
        description: Its file of variables; not looked at here.
        type: str
      socket:
        description: The Unix socket it answers on, where it has one; the public socket leads there when it is started again.
        type: str
"""
