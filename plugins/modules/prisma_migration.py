#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Apply the migrations of a Prisma application without Node, with Prisma's own bookkeeping."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prisma_migration
short_description: Apply the migrations of a Prisma application to its PostgreSQL database
version_added: 0.1.0
description:
  - Applies the directories of C(prisma/migrations) in order, each with its record in C(_prisma_migrations) in one
    transaction. A migration is applied as a whole or not at all.
  - Needs neither Node nor Prisma on the host. The Prisma CLI and this module can take turns on one database, as they read
    and write the same history and hold the same advisory lock.
  - Refuses, and says the way out, when an earlier migration failed (P3009), an applied migration was edited since or has no
    directory any more, the schema has tables but no history (P3005), or a migration holds a statement that cannot run inside
    a transaction.
  - A C(BEGIN) and C(COMMIT) in a script are left out, as the module's own transaction holds all of it.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.locks
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: full
    details: >-
      Plans with SELECTs, and refuses what a run would refuse. Whether a statement would fail cannot be known.
      With O(state=resolved) it says what would be done.
  diff_mode:
    support: full
    details: Shows the applied migrations before and after.
options:
  path:
    description:
      - Directory on the target that holds the migration directories, as a rule C(prisma/migrations) of a release.
    type: path
    required: true
  state:
    description:
      - V(deployed) applies what is pending.
      - V(status) only tells how the database stands to the migrations, and does not fail for what it finds.
      - V(checked) refuses what stands in the way of a deployment by this module or by the Prisma CLI, and returns the definitions of the
        tables that are there, for O(before).
      - V(proven) requires that nothing is pending or wrong with the history, that with O(unified_model=true) the unified tables are
        there, and that the tables of O(before) are what they were.
      - V(resolved) marks one migration as C(prisma migrate resolve) does, and refuses when the catalogue contradicts what is claimed.
        It says in RV(does) what exactly is done.
    type: str
    default: deployed
    choices: [deployed, status, checked, proven, resolved]
  migration:
    description:
      - With O(state=resolved) the migration to mark.
    type: str
  resolution:
    description:
      - V(applied) records that what the migration makes is there; for baselines, and for migrations that were completed by hand.
      - V(rolled_back) marks the record of a migration that failed, so that it is applied again. Nothing of it may be there.
      - Judged are tables, columns, constraints, indexes, types with their values, views, sequences, schemas and extensions, unless a
        later migration touches them again. Of data statements the catalogue tells nothing.
    type: str
    choices: [applied, rolled_back]
  before:
    description:
      - With O(state=proven) what O(state=checked) returned as RV(tables) before the deployment.
    type: dict
    default: {}
  schema:
    description:
      - The database schema that the migrations fill and that holds C(_prisma_migrations). It is created when there is none.
    type: str
    default: public
  unified_model:
    description:
      - Whether these migrations are to bring the unified user model.
      - Then the module fails when its tables are not there in the end, and rolls back a migration that, with these tables
        there and the data not yet migrated, changes a table that the data migration reads.
    type: bool
    default: false
  mapping:
    description:
      - What the application calls its tables, where it differs from the default names. Used with O(unified_model=true).
      - >-
        Written as C({tables: {<logical table>: {name: <actual table>}}}).
    type: dict
"""

EXAMPLES = r"""
- name: See what would be applied
  rnltlabs.unified_user.prisma_migration:
    login_db: massava
    login_unix_socket: /var/run/postgresql
    path: /srv/massava/current/prisma/migrations
  check_mode: true
  diff: true

- name: Apply it
  rnltlabs.unified_user.prisma_migration:
    login_db: massava
    login_host: db.example.com
    login_user: massava_owner
    login_password: "{{ unified_user_login_password }}"
    path: /srv/massava/current/prisma/migrations
    unified_model: true

- name: Ask how a database stands to a release
  rnltlabs.unified_user.prisma_migration:
    login_db: massava
    path: /srv/massava/current/prisma/migrations
    state: status
  register: __migrations

- name: See what marking a failed migration as rolled back would do
  rnltlabs.unified_user.prisma_migration:
    login_db: massava
    path: /srv/massava/current/prisma/migrations
    state: resolved
    migration: 20251101120000_add_unified_user_model_and_rbac
    resolution: rolled_back
  check_mode: true
"""

RETURN = r"""
applied:
  description: Migrations that this run applied, in order. On failure those that stay.
  returned: always
  type: list
  elements: str
  sample: [20251101120000_add_unified_user_model_and_rbac]
pending:
  description: Migrations that are not applied, in order.
  returned: success
  type: list
  elements: str
already_applied:
  description: How many migrations the database had before.
  returned: success
  type: int
  sample: 6
up_to_date:
  description: Whether nothing is pending, and nothing is wrong with the history.
  returned: success
  type: bool
failed_migrations:
  description: Migrations that began, did not finish and were not resolved.
  returned: when O(state=status), or on failure because of them
  type: list
  elements: str
edited_migrations:
  description: Applied migrations whose script was changed since.
  returned: when O(state=status), or on failure because of them
  type: list
  elements: str
missing_migrations:
  description: Applied migrations that have no directory.
  returned: when O(state=status), or on failure because of them
  type: list
  elements: str
needs_baseline:
  description: Whether the schema has tables but no history.
  returned: when O(state=status)
  type: bool
remains:
  description: By failed migration, how much of it is in the database, in words.
  returned: when O(state=status)
  type: dict
missing_tables:
  description: With O(unified_model=true) the unified tables that the data migration fills and that are not there.
  returned: when O(state=status)
  type: list
  elements: str
lock_holders:
  description: Sessions that hold Prisma's lock right now.
  returned: when O(state=status)
  type: list
  elements: str
tables:
  description: >-
    The tables that are there, apart from the unified ones and the history, with digests of their parts. Empty without
    O(unified_model=true) and once the data is migrated.
  returned: when O(state=checked)
  type: dict
tables_unchanged:
  description: How many tables of O(before) were compared and are what they were.
  returned: when O(state=proven)
  type: int
does:
  description: What is done, or would be in check mode, a sentence each. Empty when the history says so already.
  returned: when O(state=resolved)
  type: list
  elements: str
unjudged:
  description: Line and kind of each statement of the migration that leaves nothing in the catalogue to look for.
  returned: when O(state=resolved) and something was to be done
  type: list
  elements: str
failed_statement:
  description: Migration, number and line of the statement that failed, and its SQLSTATE.
  returned: when a statement failed
  type: dict
  sample: {migration: 20251101120000_add_unified_user_model_and_rbac, statement: 3, line: 21, sqlstate: 42P07}
blockers:
  description: Sessions that hold a lock in the way.
  returned: on failure because of a lock
  type: list
  elements: str
duration_ms:
  description: Duration of the whole, in milliseconds.
  returned: success
  type: int
executed_queries:
  description: The statements run, with placeholders in the place of values; of a script only its name and length.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import parse_mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule, locks_spec
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma import Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma_deployment import deploy
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma_states import check, prove, resolve, status


def migrate(module: UnifiedUserModule) -> dict:
    """Do what the options ask for and return what the module returns."""
    parameters = module.params
    options = Options(
        path=parameters["path"],
        schema=parameters["schema"],
        lock_timeout=parameters["lock_timeout"],
        lock_retry_seconds=parameters["lock_retry_seconds"],
        unified_model=parse_mapping(parameters["mapping"]) if parameters["unified_model"] else None,
    )
    database = module.connect()
    try:
        does = {
            "deployed": lambda: deploy(database, options, module.connect, module.check_mode),
            "status": lambda: status(database, options),
            "checked": lambda: check(database, options),
            "proven": lambda: prove(database, options, parameters["before"]),
            "resolved": lambda: resolve(database, options, parameters["migration"], parameters["resolution"], module.check_mode),
        }
        result = does[parameters["state"]]()
    finally:
        database.close()
    return {**result, "executed_queries": database.executed_queries}


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "default": "deployed", "choices": ["deployed", "status", "checked", "proven", "resolved"]},
            "migration": {"type": "str"},
            "resolution": {"type": "str", "choices": ["applied", "rolled_back"]},
            "before": {"type": "dict", "default": {}},
            "schema": {"type": "str", "default": "public"},
            "unified_model": {"type": "bool", "default": False},
            "mapping": {"type": "dict"},
            **locks_spec(),
        },
        required_if=[("state", "resolved", ("migration", "resolution"))],
        supports_check_mode=True,
    )
    module.run(migrate)


if __name__ == "__main__":
    main()
