#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Rehearse the migration on a copy restored from the proven backup."""

from __future__ import annotations

DOCUMENTATION = r"""
module: unified_user_rehearsal
short_description: Rehearse the migration on a copy restored from the proven backup
version_added: 0.1.0
description:
  - Restores a proven backup of O(login_db) into a database of its own and goes the whole way there - all pending migrations, writes as
    the application makes them before cut-over, the copy of the data, its verification, writes as the application makes them afterwards,
    and the way back. Then it proves that the legacy side is what it was, apart from those writes.
  - Compares the catalogue of the copy before and after the migrations. Whatever they change outside the unified tables, with their types,
    indexes and keys, is a failure; so are changed rows of other tables. O(accepted_changes) names what is none.
  - Measures each step. The forecast is returned and written as C(rehearsal.json) beside the backup.
  - The real database is only asked whether its migration has begun or is finished. Each session of the rehearsal asks the server which database
    it is in, and refuses all but the copy that this module restored and marked as its own.
  - The copy is dropped afterwards, also on failure. What a killed run leaves is dropped by the next one.
  - Does nothing once the migration is finished, and refuses one that has begun, as a copy would start from the middle of it.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.policies
  - rnltlabs.unified_user.pgbackrest
  - rnltlabs.unified_user.locks
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: full
    details: Verifies the files of the backup, reads the migrations and looks for everything that would stop the restore.
  diff_mode:
    support: none
options:
  state:
    description:
      - V(rehearsed) does all of it, and applies the migrations as M(rnltlabs.unified_user.prisma_migration) does.
      - V(restored) only makes the copy, for another engine to deploy the migrations to. V(continued) then goes the rest of the way.
      - V(absent) drops the copy of V(restored) unless O(keep).
    type: str
    choices: [rehearsed, restored, continued, absent]
    default: rehearsed
  applied:
    description:
      - With O(state=continued) the names of the migrations that were deployed.
    type: list
    elements: str
    default: []
  schema_deploy_ms:
    description:
      - With O(state=continued) how long that took, in milliseconds.
    type: int
    default: 0
  migrations_path:
    description:
      - The directory that holds the application's migrations, as in O(rnltlabs.unified_user.prisma_migration#module:path).
    type: path
    required: true
  backup:
    description:
      - The directory of the backup. The newest proven one of O(login_db) below O(directory) if not given.
    type: path
  directory:
    description:
      - The directory that holds the backups.
    type: path
    default: /var/backups/unified_user
  target:
    description:
      - The database to rehearse in. The name of O(login_db) with C(_rehearsal) appended, if not given.
      - It must not exist, or be what an earlier rehearsal left.
    type: str
  keep:
    description:
      - Whether the copy stays, for looking at it, also after a failure. The next rehearsal drops it.
    type: bool
    default: false
  jobs:
    description:
      - How many workers restore. Each takes a connection of its own.
    type: int
    default: 2
  bin_dir:
    description:
      - The directory of C(pg_restore), as in O(rnltlabs.unified_user.database_restore#module:bin_dir).
    type: path
  decryption_identity_file:
    description:
      - The file with the identity that opens an encrypted backup, as in O(rnltlabs.unified_user.database_restore#module:decryption_identity_file).
    type: path
  accepted_changes:
    description:
      - Changes of the pending migrations outside the unified tables that somebody has looked at and accepts. They are in the forecast, with
        the reason; entries that nothing is like are told. Everything else stays a failure.
      - What the data migration reads can be changed by no migration from the one on that brings the unified tables, accepted or not.
    type: list
    elements: dict
    default: []
    suboptions:
      kind:
        description:
          - What it is, as the failure names it - C(table), C(column), C(index), C(constraint), C(type), C(function) and so on.
          - C(rows) for the rows of a table.
          - A C(table) that is V(added) comes with its columns, indexes, constraints and rows.
        type: str
        required: true
      name:
        description: Its name, as the failure names it, for example C(public.news).
        type: str
        required: true
      change:
        description: What happens to it.
        type: str
        required: true
        choices: [added, gone, altered]
      reason:
        description: Why it is accepted.
        type: str
        required: true
  maintenance_db:
    description:
      - The database to be connected to while the copy is created or dropped.
    type: str
    default: postgres
  work_mem:
    description:
      - Memory that one sort or hash of the copy may use, as PostgreSQL spells it.
    type: str
    default: 256MB
  strategy:
    description:
      - How the data is copied, as the real run will do it. See M(rnltlabs.unified_user.unified_user_transform).
    type: str
    default: atomic
    choices: [atomic, online]
  maintenance_work_mem:
    description:
      - Memory for building one index, as PostgreSQL spells it.
    type: str
    default: 512MB
notes:
  - The role needs CREATEDB, and to be a superuser or a member of the roles that own what is in the dump.
  - The server needs free disk for a copy of the database, filled on both sides.
seealso:
  - module: rnltlabs.unified_user.database_restore
  - module: rnltlabs.unified_user.prisma_migration
  - module: rnltlabs.unified_user.unified_user_transform
"""

EXAMPLES = r"""
- name: Rehearse
  rnltlabs.unified_user.unified_user_rehearsal:
    login_db: massava
    login_unix_socket: /var/run/postgresql
    migrations_path: /srv/massava/current/prisma/migrations
    accepted_changes:
      - {kind: table, name: public.news, change: added, reason: "Of the release before, which was never deployed; nothing reads it yet."}
  register: __rehearsal

- name: Say how long nobody will be able to book
  ansible.builtin.debug:
    msg: "{{ __rehearsal.forecast.longest_lock_ms }} ms"
"""

RETURN = r"""
finished:
  description: Whether the migration is finished already, so that there was nothing to rehearse.
  returned: success
  type: bool
planned:
  description: Whether this was only a plan.
  returned: success
  type: bool
target:
  description: The database that was rehearsed in.
  returned: unless RV(finished)
  type: str
kept:
  description: Whether that database is still there.
  returned: unless RV(finished)
  type: bool
dropped_leftover:
  description: Whether a copy that an earlier rehearsal had left was dropped first.
  returned: unless RV(finished)
  type: bool
backup:
  description: The backup that was restored, as M(rnltlabs.unified_user.database_restore) returns it.
  returned: unless RV(finished)
  type: dict
forecast:
  description: What the real run is going to do, as far as a copy can tell. It is what C(rehearsal.json) holds.
  returned: unless RV(finished), not in check mode
  type: dict
  contains:
    backup:
      description: The sha256 of the backup and the moment whose state it holds.
      type: dict
    migrations:
      description: The migrations that were pending, each with its name and the SHA-256 of its migration.sql (C(checksum)).
      type: list
      elements: dict
    catalogue:
      description: >-
        How many objects the catalogue of the copy had before and after the migrations (C(objects_before), C(objects_after)), and what they
        changed outside the unified tables (C(changes_outside)), each with the reason why it is C(accepted); else the rehearsal fails.
      type: dict
    unused_accepted:
      description: Entries of O(accepted_changes) that no change is like.
      type: list
      elements: dict
    steps_ms:
      description: Durations in milliseconds of C(restore), C(schema_deploy), C(data_migration), C(verification) and C(rollback).
      type: dict
      sample: {restore: 300, schema_deploy: 90, data_migration: 250, verification: 90, rollback: 80}
    phases:
      description: The phases of the copy with their rows and durations in milliseconds.
      type: list
      elements: dict
    longest_lock_ms:
      description: How long the legacy tables, or with C(strategy=online) the rows of a batch, were locked against writes, in milliseconds.
      type: int
    counts:
      description: Rows by unified table, those of the rehearsal's own writes among them.
      type: dict
    writes:
      description: The application-style writes that were made and found again.
      type: list
      elements: str
forecast_path:
  description: The file that holds the forecast.
  returned: unless RV(finished), not in check mode
  type: str
step:
  description: The step of the rehearsal that failed.
  returned: on failure
  type: str
outside_changes:
  description: What the pending migrations change outside the unified tables and nobody accepted - kind, name and problem.
  returned: on failure because of it
  type: list
duration_ms:
  description: Duration of the whole, in milliseconds.
  returned: unless RV(finished), not in check mode
  type: int
"""

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule, locks_spec, policies_spec
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._pgbackrest import ARGUMENT as PGBACKREST_ARGUMENT
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._rehearsal import rehearse
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._rehearsal_accepted import ARGUMENT as ACCEPTED_ARGUMENT


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(
        argument_spec={
            **policies_spec(),
            "state": {"type": "str", "default": "rehearsed", "choices": ["rehearsed", "restored", "continued", "absent"]},
            "applied": {"type": "list", "elements": "str", "default": []},
            "schema_deploy_ms": {"type": "int", "default": 0},
            "migrations_path": {"type": "path", "required": True},
            "backup": {"type": "path"},
            "directory": {"type": "path", "default": "/var/backups/unified_user"},
            "target": {"type": "str"},
            "keep": {"type": "bool", "default": False},
            "jobs": {"type": "int", "default": 2},
            "bin_dir": {"type": "path"},
            "decryption_identity_file": {"type": "path"},
            "pgbackrest": PGBACKREST_ARGUMENT,
            "accepted_changes": ACCEPTED_ARGUMENT,
            "maintenance_db": {"type": "str", "default": "postgres"},
            **locks_spec(),
            "work_mem": {"type": "str", "default": "256MB"},
            "maintenance_work_mem": {"type": "str", "default": "512MB"},
            "strategy": {"type": "str", "default": "atomic", "choices": ["atomic", "online"]},
        },
        supports_check_mode=True,
    )
    module.run(lambda module: rehearse(module.params, module.check_mode))


if __name__ == "__main__":
    main()
