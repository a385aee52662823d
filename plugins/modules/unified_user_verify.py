#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prove that the unified tables are exactly what the legacy tables call for, or the other way round."""

from __future__ import annotations

DOCUMENTATION = r"""
module: unified_user_verify
short_description: Prove that the unified tables are exactly what the legacy tables call for, or the other way round
version_added: 0.1.0
description:
  - Derives from the legacy tables what every row of the unified tables must be, with SQL that is not the copy's, and compares
    column by column, to the byte. A single changed, missing or additional row is found.
  - Counts both sides, looks for references that point nowhere, for roles and identities that are there twice, and for passwords,
    sessions and accounts that must not have been carried.
  - Everything is read in one snapshot, with SELECTs alone; the right to SELECT is enough, and a replica will do.
  - Two sessions share the work where the server lets a second one in, and one does it otherwise.
  - In reverse, while the sync carries what the unified side writes, it proves that the legacy side holds all that it can hold of the
    unified side, row by row and column by column. What the legacy tables have no place for is counted by its kind and is no difference.
  - A check that could not run has failed, and so has a verification of a database that was never migrated.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.policies
  - rnltlabs.unified_user.attributes.reads_only
options:
  direction:
    description:
      - V(forward) proves that the unified side is what the legacy side calls for.
      - V(reverse) proves that everything the unified side says is on the legacy side, or is of a kind that it cannot hold, or in quarantine, and
        that every legacy row is accounted for. It needs the sync to be V(both) or V(reverse). Of a
        person's several legacy rows counts what they say together. A role that was revoked leaves its legacy row, and nothing tells
        that from one that was lost, so it is counted.
    type: str
    choices: [forward, reverse]
    default: forward
  fail_on_difference:
    description:
      - Whether the module fails when a check does. Otherwise it returns what it found.
    type: bool
    default: true
  cutover_at:
    description:
      - When the application moved to the unified tables, in UTC unless the time names its zone. Without it, everything must match exactly.
      - Rows without a source that were born since are counted apart. A row without a time of its own goes by its user's.
      - Users and bookings that were changed since, while their sources were not, are counted apart as well.
      - Rows that are gone since, and accounts, sessions and favourites that existing users have gained since, cannot be told from a loss
        or an intrusion by their columns. They stay differences.
    type: str
"""

EXAMPLES = r"""
- name: Prove the migrated data
  rnltlabs.unified_user.unified_user_verify:
    login_db: massava
    login_unix_socket: /var/run/postgresql

- name: Look on a replica, a week after cut-over, and go on whatever is found
  rnltlabs.unified_user.unified_user_verify:
    login_db: massava
    login_host: replica.example.com
    login_user: massava_reader
    login_password: "{{ unified_user_login_password }}"
    cutover_at: "2026-03-01 02:30:00"
    fail_on_difference: false
  register: __verification

- name: Prove, before going back, that everything written since the switch is on the legacy side
  rnltlabs.unified_user.unified_user_verify:
    login_db: massava
    login_unix_socket: /var/run/postgresql
    direction: reverse
"""

RETURN = r"""
passed:
  description: Whether every check ran and found no difference.
  returned: success and failure
  type: bool
checks:
  description: The checks, in the order they ran.
  returned: success and failure
  type: list
  elements: dict
  contains:
    name:
      description: Name of the check.
      type: str
    passed:
      description: Whether it ran and found no difference.
      type: bool
    expected:
      description: What must be, mostly a number of rows. None when the check could not run.
      type: raw
    actual:
      description: What is.
      type: raw
    differing:
      description: How many rows are not as they must be. None when the check could not run.
      type: int
    samples:
      description: Keys of a few of them, e-mails masked, with the columns that differ.
      type: list
      elements: str
    detail:
      description: What differs in which columns, or why the check could not run.
      type: str
  sample:
    - {name: users, passed: true, expected: 198, actual: 198, differing: 0, samples: [], detail: ""}
totals:
  description: Totals in the migration guide's terms. Empty when they could not be counted.
  returned: success and failure
  type: dict
  sample: {users: 198, role_assignments: 200, ownerships: 47, bookings: 312, orphans: 0}
not_representable:
  description:
    - What only the unified side holds, as rows by kind. C(users.phone) and the like are values of a column.
  returned: success and failure, when O(direction=reverse)
  type: dict
  sample: {suspended_users: 1, confirmations_of_bookings: 12, users.phone: 3}
not_carried:
  description:
    - Credentials that only the legacy side holds, since they were not carried, and rows or values that are in quarantine, as rows by kind.
  returned: success and failure, when O(direction=reverse)
  type: dict
  sample: {sessions_not_carried: 1, quarantine: 2}
duration_ms:
  description: Duration of the whole, in milliseconds.
  returned: success and failure
  type: int
executed_queries:
  description: The statements run, with placeholders in the place of values.
  returned: success and failure
  type: list
  elements: str
"""

import time

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule, policies_spec
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import verify_database


def verify(module: UnifiedUserModule) -> dict:
    """Verify and return what the module returns."""
    names = ("schema", "mapping", "sample_size", "mask_pii", "cutover_at", "direction")
    started = time.monotonic()
    database = module.connect()
    try:
        found = verify_database(
            database, policies=Policies.from_parameters(module.params), connect=module.connect, **{name: module.params[name] for name in names}
        )
    finally:
        database.close()
    facts = {"duration_ms": round((time.monotonic() - started) * 1000), "executed_queries": database.executed_queries}
    if module.params["fail_on_difference"]:
        found.require(**facts)
    return {"changed": False, **found.as_dict(), **facts}


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(
        argument_spec={
            **policies_spec(), "fail_on_difference": {"type": "bool", "default": True}, "cutover_at": {"type": "str"},
            "direction": {"type": "str", "choices": ["forward", "reverse"], "default": "forward"},
        },
        supports_check_mode=True,
    )
    module.run(verify)


if __name__ == "__main__":
    main()
