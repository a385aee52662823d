#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Put a restored copy in the place of the live database."""

from __future__ import annotations

DOCUMENTATION = r"""
module: database_swap
short_description: Put a restored copy in the place of the live database
version_added: 0.1.0
description:
  - Exchanges O(login_db) for a copy that M(rnltlabs.unified_user.database_restore) has restored and compared.
  - New connections are refused, the open sessions end, then one transaction renames both databases and gives the copy the live one's
    owner, privileges, connection limit, settings and comment. If anything in it fails, nothing was renamed and the application can
    connect as before.
  - The replaced database is kept as C(<database>_replaced_<UTC time>), with everything that was written since the backup.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: full
    details: Looks for everything that would stop the exchange. The copy need not exist yet.
  diff_mode:
    support: none
options:
  state:
    description:
      - V(swapped) exchanges the databases.
      - V(recovered) opens the live database again if a run was killed while it was closed. Otherwise it does nothing.
    type: str
    default: swapped
    choices: [swapped, recovered]
  replacement:
    description:
      - The restored copy. The name of O(login_db) with C(_restored) appended, if not given.
    type: str
  terminate_sessions:
    description:
      - Whether sessions that are open on the live database may be ended. Without it they are a failure.
    type: bool
    default: false
  timeout:
    description:
      - How long sessions may take to end, in seconds.
    type: int
    default: 30
  maintenance_db:
    description:
      - The database to be connected to meanwhile.
    type: str
    default: postgres
notes:
  - The role must own the live database and have CREATEDB, or be a superuser. To end other roles' sessions it needs C(pg_signal_backend).
seealso:
  - module: rnltlabs.unified_user.database_restore
"""

EXAMPLES = r"""
- name: Go back to the restored copy
  rnltlabs.unified_user.database_swap:
    login_db: massava
    login_unix_socket: /var/run/postgresql
    terminate_sessions: true
  register: __swap

- name: Say what was kept
  ansible.builtin.debug:
    msg: "{{ __swap.replaced }} holds what was replaced. When nobody needs it any more: {{ __swap.drop_command }}"
"""

RETURN = r"""
replaced:
  description: The name under which the replaced database is kept.
  returned: when O(state=swapped)
  type: str
  sample: massava_replaced_20251101_221500
drop_command:
  description: The statement that drops it.
  returned: when O(state=swapped)
  type: str
sessions:
  description: The sessions that were open on the live database, by application and role.
  returned: when O(state=swapped)
  type: list
  elements: str
stays_behind:
  description: What stays with the replaced database and is not carried over, such as logical replication slots.
  returned: when O(state=swapped)
  type: list
  elements: str
duration_ms:
  description: Duration of the whole, in milliseconds.
  returned: when O(state=swapped), not in check mode
  type: int
closed_ms:
  description: How long the application could not connect, in milliseconds.
  returned: when O(state=swapped), not in check mode
  type: int
executed_queries:
  description: The statements run, with placeholders in the place of values.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._swap import Swap


def swap(module: UnifiedUserModule) -> dict:
    """Do what the state asks for and return what the module returns."""
    exchange = Swap(module.params, module.check_mode)
    return exchange.recover() if module.params["state"] == "recovered" else exchange.run()


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(
        argument_spec={
            "state": {"type": "str", "default": "swapped", "choices": ["swapped", "recovered"]},
            "replacement": {"type": "str"},
            "terminate_sessions": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 30},
            "maintenance_db": {"type": "str", "default": "postgres"},
        },
        supports_check_mode=True,
    )
    module.run(swap)


if __name__ == "__main__":
    main()
