#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find everything that could stop or spoil the migration before anything is touched."""

from __future__ import annotations

DOCUMENTATION = r"""
module: unified_user_preflight
short_description: Find what could stop or spoil the migration of users, before anything is touched
version_added: 0.1.0
description:
  - Looks at the rows that will be copied, at tables, keys and privileges, at the server and at who else uses it, and estimates
    how much disk and time the migration will need.
  - Everything is read in one read-only transaction. Nothing is changed, not even statistics.
  - Something that could not be looked at is a finding, too.
  - Works before the unified tables exist. What concerns them is then left for later.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.policies
  - rnltlabs.unified_user.attributes.reads_only
options:
  expect_unified:
    description:
      - Whether the unified tables must be there. By default their absence is told as information, because deploying the schema
        comes after this.
    type: bool
    default: false
  fail_on_blocker:
    description:
      - Whether the module fails when there is a blocker. By default it returns it, so that everything found can be shown first.
    type: bool
    default: false
  restore_test:
    description:
      - Whether a backup will be restored on this server for a test. The role then needs C(CREATEDB), and the server room for a copy.
    type: bool
    default: true
  rehearsal:
    description:
      - Whether the migration will be rehearsed on this server. It then needs room for a copy that is filled on both sides.
    type: bool
    default: true
  bin_dir:
    description:
      - Directory of C(pg_dump), C(pg_restore) and C(psql) on the target host.
      - Without it, E(PATH) and the usual directories are searched for programs that fit the server.
    type: path
  required_bytes:
    description:
      - Free disk to ask for on the database server, in bytes, instead of the estimate.
    type: int
  available_bytes:
    description:
      - Free disk of the database server, in bytes, where the module cannot see it because it runs on another host.
    type: int
  max_transaction_seconds:
    description:
      - Age from which on another session's transaction is a warning, in seconds.
    type: float
    default: 60
  max_replica_lag_seconds:
    description:
      - Lag from which on a replica is a warning, in seconds.
    type: float
    default: 10
  max_duration_seconds:
    description:
      - Expected duration of the copy from which on it is a warning, in seconds. Writes to the legacy tables wait that long.
    type: float
    default: 600
  lock_timeout:
    description:
      - Longest wait for a table that another session has locked exclusively, in milliseconds.
    type: int
    default: 2000
seealso:
  - module: rnltlabs.unified_user.unified_user_transform
"""

EXAMPLES = r"""
- name: Look before the migration
  rnltlabs.unified_user.unified_user_preflight:
    login_db: massava
    login_unix_socket: /var/run/postgresql
  register: __preflight

- name: Name the blockers
  ansible.builtin.debug:
    msg: "{{ __preflight.findings | selectattr('severity', 'eq', 'blocker') | map(attribute='detail') }}"

- name: Stop at blockers, with duplicate registrations joined
  rnltlabs.unified_user.unified_user_preflight:
    login_db: massava
    login_host: db.example.com
    login_user: massava_owner
    login_password: "{{ unified_user_login_password }}"
    duplicate_identities: merge
    available_bytes: 50000000000
    fail_on_blocker: true
"""

RETURN = r"""
findings:
  description: What was found, blockers first.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Stable name of the finding.
      type: str
      sample: duplicate_identities
    severity:
      description: V(blocker) stops the migration, V(warning) wants a decision, V(info) is good to know.
      type: str
      sample: blocker
    count:
      description: How many rows, keys or objects it is about.
      type: int
      sample: 2
    detail:
      description: What was found, as a clause.
      type: str
      sample: identities with two or more rows in one table
    hint:
      description: A command to run or a variable to set.
      type: str
      sample: "Set unified_user_duplicate_identities: merge to join them in survivor order, or merge the rows by hand"
    samples:
      description: Some of them, at most O(sample_size). E-mails are masked unless O(mask_pii=false).
      type: list
      elements: str
      sample: ["a***@example.com: customers c1, customers c2"]
blocked:
  description: Whether there is a blocker.
  returned: always
  type: bool
estimates:
  description: What the migration will need. None of it is known for a database that has been migrated.
  returned: always
  type: dict
  contains:
    rows:
      description: Rows of the legacy tables that will be copied.
      type: int
    bytes:
      description: Free disk that is needed at most, on all file systems together, WAL included.
      type: int
    seconds:
      description: Expected duration of the copy, its verification included.
      type: float
    tables:
      description: Rows by legacy table.
      type: dict
    bytes_for:
      description: What the bytes are for, and what they were estimated from.
      type: dict
  sample: {rows: 716, bytes: 19204915, seconds: 1.0, tables: {studio_owners: 42, customers: 158},
    bytes_for: {data: 9000000, wal: 9900000, temporary: 304915}}
server:
  description: What the server says of itself and of the session.
  returned: always
  type: dict
  sample: {version: "16.4", major: 16, in_recovery: false, database: massava, encoding: UTF8, login: massava_owner, role: massava_owner}
duration_ms:
  description: Duration of the whole, in milliseconds.
  returned: always
  type: int
executed_queries:
  description: The statements run, with placeholders in the place of values.
  returned: always
  type: list
  elements: str
"""

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule, policies_spec
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight import run_preflight


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(
        argument_spec={
            **policies_spec(),
            "expect_unified": {"type": "bool", "default": False},
            "fail_on_blocker": {"type": "bool", "default": False},
            "restore_test": {"type": "bool", "default": True},
            "rehearsal": {"type": "bool", "default": True},
            "bin_dir": {"type": "path"},
            "required_bytes": {"type": "int"},
            "available_bytes": {"type": "int"},
            "max_transaction_seconds": {"type": "float", "default": 60},
            "max_replica_lag_seconds": {"type": "float", "default": 10},
            "max_duration_seconds": {"type": "float", "default": 600},
            "lock_timeout": {"type": "int", "default": 2000},
        },
        supports_check_mode=True,
    )
    module.run(lambda module: run_preflight(module.params))


if __name__ == "__main__":
    main()
