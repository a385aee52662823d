#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keep the legacy and the unified user model in step while both are in use."""

from __future__ import annotations

DOCUMENTATION = r"""
module: unified_user_sync
short_description: Keep legacy and unified users in step while both are in use
version_added: 0.1.0
description:
  - Makes row triggers that carry every write of one user model to the other, in the transaction of that write.
  - C(forward) carries what the legacy side writes, by bringing whole identities up to date. C(reverse) writes back what the
    unified side says, as far as the legacy tables can hold it; what they cannot hold stays and is counted.
  - The application needs no new privileges. Its C(TRUNCATE) of a synced table is refused with an explanation.
  - What the other side cannot take, such as a second owner of one e-mail, does not fail the application's write. It goes to
    C(unified_user_journal.quarantine) until somebody settles it.
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
    details: Says whether anything would change, and what is on now.
  diff_mode:
    support: full
    details: Shows the direction before and after.
options:
  state:
    description:
      - V(present) keeps both sides in step from now on. V(absent) ends it and leaves the rows of both sides as they are;
        not while an online migration is under way.
    type: str
    default: present
    choices: [present, absent]
  direction:
    description:
      - Which side's writes are carried. V(forward) before cut-over, V(both) from the moment that a release writes to the
        unified tables, V(reverse) when no release writes to the legacy tables any more.
    type: str
    default: forward
    choices: [forward, reverse, both]
notes:
  - The options that say what the data means must be those of the migration, which must be finished.
  - The functions belong to the role that runs the module. It needs to own the tables.
"""

EXAMPLES = r"""
- name: Carry what the old release writes from now on
  rnltlabs.unified_user.unified_user_sync:
    login_db: massava
    login_unix_socket: /var/run/postgresql

- name: Keep both sides in step while old and new releases run side by side
  rnltlabs.unified_user.unified_user_sync:
    login_db: massava
    direction: both

- name: See what going back would leave behind
  rnltlabs.unified_user.unified_user_sync:
    login_db: massava
    direction: both
  check_mode: true
  register: sync
"""

RETURN = r"""
direction:
  description: The direction that is on now; null when none is.
  returned: success
  type: str
  sample: both
missing:
  description: Triggers that should be there and are not, or are not enabled always, as C(table.trigger).
  returned: success
  type: list
  elements: str
outdated:
  description:
    - Whether the triggers were made for other columns than there are now, or by another version of the collection.
    - They carry nothing of a column that came since. O(state=present) makes them anew.
  returned: success
  type: bool
repaired:
  description:
    - How many identities were looked at again, because triggers of C(forward) had been missing or outdated. What they missed is carried now.
    - Once the unified side is written as well nobody can tell which side missed a write, and nothing is repaired; the verification
      names what differs.
  returned: success
  type: int
quarantine:
  description: Rows in quarantine, by reason. They stop the cut-over until they are settled.
  returned: success
  type: dict
  sample: {unresolvable: 1}
not_representable:
  description: What the unified side holds and the legacy side cannot, in rows by kind. Going back leaves it behind.
  returned: success
  type: dict
  sample: {suspended_users: 1, users.phone: 3, further_owners: 2}
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

import time

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule, locks_spec, policies_spec
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions


def synchronise(module: UnifiedUserModule) -> dict:
    """Do what the options ask for and return what the module returns."""
    names = ("schema", "mapping", "lock_timeout", "lock_retry_seconds")
    options = SyncOptions(policies=Policies.from_parameters(module.params), **{name: module.params[name] for name in names})
    direction = module.params["direction"] if module.params["state"] == "present" else None
    started = time.monotonic()
    database = module.connect()
    try:
        sync = Sync(database, options)
        before = sync.status()["direction"]
        if module.check_mode:
            changed = sync.changes(direction)
        elif direction:
            changed = sync.install(direction)
        else:
            changed = sync.remove()
        status = sync.status()
    finally:
        database.close()
    diff = {"before": {"direction": before}, "after": {"direction": direction if changed else before}}
    duration = round((time.monotonic() - started) * 1000)
    return {"changed": changed, **status, "repaired": sync.repaired, "duration_ms": duration, "diff": diff, "executed_queries": database.executed_queries}


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(
        argument_spec={
            **policies_spec(),
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
            "direction": {"type": "str", "default": "forward", "choices": ["forward", "reverse", "both"]},
            **locks_spec(),
        },
        supports_check_mode=True,
    )
    module.run(synchronise)


if __name__ == "__main__":
    main()
