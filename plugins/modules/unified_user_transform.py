#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Copy owners, customers and what belongs to them into the unified user model, or undo it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: unified_user_transform
short_description: Copy the legacy users of an application into its unified user model
version_added: 0.1.0
description:
  - Fills C(users), C(user_role_assignments), C(studio_ownership), C(new_accounts), C(new_sessions), C(new_bookings) and
    C(_UserFavorites) from C(studio_owners), C(customers) and what belongs to them.
  - With O(strategy=atomic) everything happens in one transaction, in which the legacy tables are locked against writes, and
    which verifies the result before it commits. A difference, a blocker or an interruption leaves the database as it was.
  - With O(strategy=online) the application writes on. Triggers carry what it writes, batches of identities carry what was there
    before, and verification follows on a snapshot. An interruption leaves a state from which the next run goes on.
  - Indexes and foreign keys of the still empty unified tables are taken down before and built again in that transaction.
    What is down is recorded in the schema C(unified_user_journal), so that an interrupted run's successor finds it.
  - A finished migration is not done again. The module then only counts.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.policies
  - rnltlabs.unified_user.locks
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: full
    details: Plans with SELECTs and returns the counts that a run would give.
  diff_mode:
    support: full
    details: Shows rows by unified table before and after.
options:
  state:
    description:
      - V(present) copies. V(absent) empties the unified tables, puts indexes and foreign keys back and forgets the run.
        The legacy tables are not touched by either.
    type: str
    default: present
    choices: [present, absent]
  strategy:
    description:
      - How to copy. V(atomic) takes one transaction, during which nobody writes to the legacy tables. V(online) takes many short
        ones beside a running application.
    type: str
    default: atomic
    choices: [atomic, online]
  batch_seconds:
    description:
      - How long one transaction of the online strategy should take, in seconds. The number of identities in a batch follows from it.
    type: float
    default: 0.5
  batch_keys:
    description:
      - Most identities in one batch of the online strategy.
    type: int
    default: 500
  parallel_workers:
    description:
      - Sessions that carry at the same time with the online strategy, each its own share of the identities.
      - With one the server has one process at work for the migration in every phase, and its other processors for the application. With
        two it is done sooner.
    type: int
    default: 1
  slice_seconds:
    description:
      - After how long the online strategy returns to show where it is, in seconds, to be called again; V(0) for never.
      - The action plugin of this module, which runs on the controller, calls it again and prints a line each time.
    type: float
    default: 10
  run_id:
    description:
      - What tells this run of the online strategy from others; the action plugin makes one for all its slices.
    type: str
  reconnect_seconds:
    description:
      - How long a lost server is looked for by the online strategy before it gives up, in seconds.
    type: float
    default: 60
  throttle_replica_lag:
    description:
      - The online strategy waits while a standby lags by more than this, in seconds; V(0) turns the signal off.
      - Any one signal is enough to wait, and one that cannot be read counts as one.
    type: float
    default: 10
  throttle_active_sessions:
    description:
      - The online strategy waits while more other sessions of this database run a statement; V(0) turns the signal off.
    type: int
    default: 0
  throttle_transaction_age:
    description:
      - The online strategy waits while another transaction of this database is open for longer, in seconds; V(0) turns the signal off.
    type: float
    default: 0
  throttle_unarchived_segments:
    description:
      - The online strategy waits while more WAL segments wait for the archiver; V(0) turns the signal off.
    type: int
    default: 0
  throttle_query:
    description:
      - A query of your own. The online strategy waits as long as its first value is true.
    type: str
  work_mem:
    description:
      - Memory that one sort or hash of the copy may use, as PostgreSQL spells it.
    type: str
    default: 256MB
  maintenance_work_mem:
    description:
      - Memory for building one index, as PostgreSQL spells it.
    type: str
    default: 512MB
  sync:
    description:
      - Whether what the legacy side writes after the copy is carried to the unified side, from the copy's own transaction on.
        M(rnltlabs.unified_user.unified_user_sync) then changes the direction, or ends it.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: See what the copy would bring
  rnltlabs.unified_user.unified_user_transform:
    login_db: massava
    login_unix_socket: /var/run/postgresql
  check_mode: true

- name: Copy, joining people who registered twice
  rnltlabs.unified_user.unified_user_transform:
    login_db: massava
    login_host: db.example.com
    login_user: massava_owner
    login_password: "{{ unified_user_login_password }}"
    duplicate_identities: merge

- name: Copy beside the running application, making way for standbys that lag
  rnltlabs.unified_user.unified_user_transform:
    login_db: massava
    strategy: online
    throttle_replica_lag: 5

- name: Undo the copy
  rnltlabs.unified_user.unified_user_transform:
    login_db: massava
    state: absent
"""

RETURN = r"""
counts:
  description: Rows by unified table. Rows there are, would be, or (with O(state=absent)) were removed.
  returned: success
  type: dict
  sample: {users: 198, user_role_assignments: 200, studio_ownership: 47, new_bookings: 312}
kept:
  description: Rows of the legacy tables, which an undoing leaves as they are.
  returned: when O(state=absent)
  type: dict
  sample: {studio_owners: 42, customers: 158, bookings: 312}
finished:
  description: Whether the copy is complete and verified.
  returned: when O(state=present)
  type: bool
identities:
  description:
    - Identities by what became of them. Those with several rows are C(joined); of these C(password_kept) kept a password over
      a different one, C(password_adopted) took it from an absorbed row, and C(password_dropped) had one and have none now.
  returned: when O(state=present), not in check mode
  type: dict
  sample: {persons: 198, guests: 0, joined: 2, password_kept: 1, password_adopted: 0, password_dropped: 1}
not_carried:
  description: Rows of accounts and sessions that were not carried because their owner's e-mail was never verified.
  returned: when O(state=present), not in check mode
  type: dict
  sample: {accounts: 1, sessions: 2}
bookings:
  description:
    - Bookings by how their user was found. C(by_email_unverified) are those tied by e-mail to an account whose e-mail was never
      verified, C(key_differs) those whose e-mail is not that of their customer.
  returned: when O(state=present), not in check mode
  type: dict
  sample: {by_customer: 290, by_email: 22, by_guest: 0, by_email_unverified: 3, key_differs: 4}
progress:
  description: Where an unfinished run is, in rows, and what it waits for.
  returned: with O(strategy=online), when not O(ignore:finished)
  type: dict
  sample: {phase: backfill, rows_done: 120000, rows_total: 560000, rows_per_second: 31000.0, waiting_for: null, request: null}
notes:
  description: What the operator should know of how the online run went, such as a lost connection.
  returned: with O(strategy=online)
  type: list
  elements: str
longest_batch_ms:
  description: The longest transaction of the backfill, in milliseconds.
  returned: with O(strategy=online), when finished
  type: int
phases:
  description: The steps of the copy with their rows and durations in milliseconds.
  returned: success
  type: list
  elements: dict
duration_ms:
  description: Duration of the whole, in milliseconds.
  returned: success
  type: int
executed_queries:
  description: The statements run, with placeholders in the place of values.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule, locks_spec, policies_spec
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._online import OnlineCopy, OnlineOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options


def transform(module: UnifiedUserModule) -> dict:
    """Do what the options ask for and return what the module returns."""
    options = Options.from_parameters(module.params)
    database = module.connect()
    try:
        if module.params["strategy"] == "online":
            copy = OnlineCopy(database, options, OnlineOptions.from_parameters(module.params), module.connect)
        else:
            copy = AtomicCopy(database, options, module.connect)
        if module.params["state"] == "absent":
            result = copy.undo(module.check_mode)
            before, after = result["counts"], dict.fromkeys(result["counts"], 0)
        else:
            result = copy.plan() if module.check_mode else copy.run()
            after = result.get("counts", {})
            before = dict.fromkeys(after, 0)
    finally:
        database.close()
    result["diff"] = {"before": before if result["changed"] else after, "after": after}
    return {**result, "executed_queries": database.executed_queries}


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(
        argument_spec={
            **policies_spec(),
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
            "strategy": {"type": "str", "default": "atomic", "choices": ["atomic", "online"]},
            "batch_seconds": {"type": "float", "default": 0.5},
            "batch_keys": {"type": "int", "default": 500, "no_log": False},
            "parallel_workers": {"type": "int", "default": 1},
            "slice_seconds": {"type": "float", "default": 10},
            "run_id": {"type": "str"},
            "reconnect_seconds": {"type": "float", "default": 60},
            "throttle_replica_lag": {"type": "float", "default": 10},
            "throttle_active_sessions": {"type": "int", "default": 0},
            "throttle_transaction_age": {"type": "float", "default": 0},
            "throttle_unarchived_segments": {"type": "int", "default": 0},
            "throttle_query": {"type": "str"},
            **locks_spec(),
            "work_mem": {"type": "str", "default": "256MB"},
            "maintenance_work_mem": {"type": "str", "default": "512MB"},
            "sync": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    module.run(transform)


if __name__ == "__main__":
    main()
