#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Look at a migration that is under way, pause it, let it go on, or end it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: unified_user_run
short_description: Look at, pause, resume or abort the migration of a database
version_added: 0.1.0
description:
  - Tells who migrates a database, since when, where that is and what it waits for, and hands the run what an operator asks of it.
  - A run of M(rnltlabs.unified_user.unified_user_transform) with C(strategy=online) hears a request within a second, between two
    of its batches. A request outlives the run, so that a paused run stays paused when it is started again.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.policies
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: full
    details: Says whether anything would change, and what is under way now.
  diff_mode:
    support: none
options:
  state:
    description:
      - V(status) only looks. V(paused) holds the run up and V(resumed) lets it go on.
      - V(aborted) ends it, empties the unified tables, puts their indexes and foreign keys back and ends the sync. The legacy
        side is not touched. A finished migration is not aborted but rolled back.
    type: str
    default: status
    choices: [status, paused, resumed, aborted]
  wait_seconds:
    description:
      - How long a run that is to end is waited for, in seconds.
    type: float
    default: 60
"""

EXAMPLES = r"""
- name: Hold the migration up until the evening's rush is over
  rnltlabs.unified_user.unified_user_run:
    login_db: massava
    state: paused
"""

RETURN = r"""
run:
  description: The run that is under way or finished, or null.
  returned: success
  type: dict
  sample: {strategy: online, state: running, started_at: '2026-11-20T01:00:00+00:00', finished_at: null}
runner:
  description:
    - Who is at work, or was last, or null. C(running) tells whether somebody is, C(heartbeat_age) when he was last seen, in seconds.
  returned: success
  type: dict
  sample: {running: true, pid: 4711, phase: backfill, rows_done: 120000, rows_total: 560000, waiting_for: null, request: null, last_error: null}
lock:
  description: Which session holds the lock that keeps two runs apart, whatever the strategy, or null.
  returned: success
  type: dict
  sample: {pid: 4711, application_name: unified_user, since: '2026-11-20 01:00:00+00'}
sync:
  description: As M(rnltlabs.unified_user.unified_user_sync) returns it.
  returned: success
  type: dict
counts:
  description: The rows removed, by unified table.
  returned: when O(state=aborted)
  type: dict
notes:
  description: What the operator should know, such as an orphaned lock that was freed.
  returned: when O(state=aborted)
  type: list
  elements: str
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
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule, policies_spec
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._run_control import RunControl
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import Options


def control(module: UnifiedUserModule) -> dict:
    """Do what the options ask for and return what the module returns."""
    options = Options(schema=module.params["schema"], mapping=module.params["mapping"], policies=Policies.from_parameters(module.params))
    state, started = module.params["state"], time.monotonic()
    database = module.connect()
    try:
        run = RunControl(database, options, module.params["wait_seconds"])
        result = {"changed": False}
        if state == "aborted":
            result = run.abort(module.check_mode)
        elif state != "status":
            result = {"changed": run.ask("pause" if state == "paused" else None, module.check_mode)}
        result.update(run.status())
    finally:
        database.close()
    duration = round((time.monotonic() - started) * 1000)
    return {**result, "duration_ms": duration, "executed_queries": database.executed_queries}


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(
        argument_spec={
            **policies_spec(),
            "state": {"type": "str", "default": "status", "choices": ["status", "paused", "resumed", "aborted"]},
            "wait_seconds": {"type": "float", "default": 60},
        },
        supports_check_mode=True,
    )
    module.run(control)


if __name__ == "__main__":
    main()
