#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tell how far the migration of a database has come."""

from __future__ import annotations

DOCUMENTATION = r"""
module: unified_user_info
short_description: Tell how far the migration of a database has come
version_added: 0.1.0
description:
  - Reads the journal of the migration, and nothing of the application's data.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.attributes.reads_only
"""

EXAMPLES = r"""
- name: Ask whether the data has been migrated
  rnltlabs.unified_user.unified_user_info:
    login_db: massava
  register: __migration

- name: Show when
  ansible.builtin.debug:
    msg: "{{ __migration.journal.run.finished_at }}"
  when: __migration.journal.finished
"""

RETURN = r"""
journal:
  description: What the journal knows.
  returned: success
  type: dict
  contains:
    present:
      description: Whether this database has a journal.
      type: bool
    finished:
      description: Whether the data has been migrated and verified.
      type: bool
    run:
      description: The run under way or finished, or none.
      type: dict
    taken_down:
      description: How many indexes and foreign keys of the unified tables an interrupted run left down.
      type: int
executed_queries:
  description: The statements run, with placeholders in the place of values.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule


def info(module: UnifiedUserModule) -> dict:
    """Read the journal and return what the module returns."""
    database = module.connect()
    try:
        journal = _journal.describe(database)
    finally:
        database.close()
    return {"changed": False, "journal": journal, "executed_queries": database.executed_queries}


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(argument_spec={}, supports_check_mode=True)
    module.run(info)


if __name__ == "__main__":
    main()
