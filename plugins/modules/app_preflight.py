#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find everything that could stop or spoil a switch of the application on one of its hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: app_preflight
short_description: Find what could stop or spoil a switch of the application on one of its hosts
version_added: 0.1.0
description:
  - Looks at programs, free disk, ports, settings, the mail service, clocks, and at the release that serves. Nothing is changed.
  - Returns everything it found at once, blockers first.
  - Of environment variables only names are asked for and told.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.attributes.reads_only
options:
  root:
    description:
      - Directory of the application, with C(releases/) and the link C(current). It need not be there yet.
    type: path
    required: true
  programs:
    description:
      - Programs by name, each with C(command), a list that prints its version, and C(minimum), the oldest that will do.
    type: dict
    default: {}
  free_bytes:
    description:
      - Free disk that a new release needs, in bytes.
    type: int
    default: 0
  port:
    description:
      - Port that the application serves on.
    type: int
    required: true
  candidate_port:
    description:
      - Port that a new release is tried on. It must be free.
    type: int
    required: true
  other_ports:
    description:
      - Ports that its further instances serve on, where systemd runs them.
    type: list
    elements: int
    default: []
  systemd_scope:
    description:
      - Whose units they are, those of the V(system) or those of a V(user). Empty where something else runs the application.
    type: str
    choices: ["", system, user]
    default: ""
  health_path:
    description:
      - What answers with 200 while the application is healthy, with the base path.
    type: str
    default: /
  release:
    description:
      - Name or commit of the release that must serve now. Empty for any.
    type: str
    default: ""
  next_release:
    description:
      - Name of the release that is switched to. That it serves already is no surprise.
    type: str
    default: ""
  environment_names:
    description:
      - Names of environment variables that the application cannot do without.
    type: list
    elements: str
    default: []
  environment_given:
    description:
      - Names of those that the switch writes.
    type: list
    elements: str
    default: []
  environment_files:
    description:
      - Files on the host with further settings, a name and a value on each line.
    type: list
    elements: path
    default: []
  mail:
    description:
      - The mail service by which magic links leave.
    type: dict
    default: {}
    suboptions:
      required:
        description:
          - Whether its absence stops the switch. Otherwise it is a warning.
        type: bool
        default: true
      variable:
        description:
          - Name of the environment variable with its URL.
        type: str
        default: ""
      scheme:
        description:
          - Its protocol; V(smtps) begins with TLS, and of V(http) and V(https) only the connection is tried.
        type: str
        default: ""
      host:
        description:
          - Its host. Empty takes it from the variable, as O(environment_files) sets it.
        type: str
        default: ""
      port:
        description:
          - Its port. 0 takes that of the protocol.
        type: int
        default: 0
  clocks:
    description:
      - What hosts say the time is, this one first. Each has C(name), C(time) in whole seconds, and C(before) and C(after), the controller's
        times before and after it was asked, in seconds.
    type: list
    elements: dict
    default: []
  clock_seconds:
    description:
      - Largest difference of this host's clock from the others and from the controller's, in seconds.
    type: float
    default: 5
  accepted:
    description:
      - Blockers that are to be warnings, by name, each with the reason.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Look at a host before the switch
  rnltlabs.unified_user.app_preflight:
    root: /srv/massava
    port: 3000
    candidate_port: 3999
    health_path: /api/health
    programs:
      node: {command: [node, --version], minimum: "18.18"}
    environment_names: [DATABASE_URL, AUTH_SECRET]
    environment_given: "{{ app_switchover_environment.keys() | list }}"
"""

RETURN = r"""
blocked:
  description: Whether there is a blocker.
  returned: success
  type: bool
findings:
  description: What was found, blockers first.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Stable name.
      type: str
    severity:
      description: V(blocker), V(warning) or V(info).
      type: str
    count:
      description: How many.
      type: int
    detail:
      description: One sentence.
      type: str
    hint:
      description: A command to run or a variable to set.
      type: str
    samples:
      description: Some of them.
      type: list
      elements: str
versions:
  description: Versions of the programs.
  returned: success
  type: dict
  sample: {node: 20.20.2}
free_bytes:
  description: Free disk where releases go, in bytes.
  returned: success
  type: int
release:
  description: Name of the release that serves; empty for none.
  returned: success
  type: str
commit:
  description: Its commit, where it was cloned.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._app_preflight import AppPreflight, Wanted


def main() -> None:
    """Run the module."""
    texts = {"type": "list", "elements": "str", "default": []}
    mail = {
        "required": {"type": "bool", "default": True}, "variable": {"type": "str", "default": ""}, "scheme": {"type": "str", "default": ""},
        "host": {"type": "str", "default": ""}, "port": {"type": "int", "default": 0},
    }  # fmt: skip
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "programs": {"type": "dict", "default": {}},
            "free_bytes": {"type": "int", "default": 0},
            "port": {"type": "int", "required": True},
            "candidate_port": {"type": "int", "required": True},
            "other_ports": {"type": "list", "elements": "int", "default": []},
            "systemd_scope": {"type": "str", "choices": ["", "system", "user"], "default": ""},
            "health_path": {"type": "str", "default": "/"},
            "release": {"type": "str", "default": ""},
            "next_release": {"type": "str", "default": ""},
            "environment_names": texts,
            "environment_given": texts,
            "environment_files": {"type": "list", "elements": "path", "default": []},
            "mail": {"type": "dict", "default": {}, "options": mail},
            "clocks": {"type": "list", "elements": "dict", "default": []},
            "clock_seconds": {"type": "float", "default": 5},
            "accepted": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    module.exit_json(changed=False, **AppPreflight(Wanted(**module.params)).look())


if __name__ == "__main__":
    main()
