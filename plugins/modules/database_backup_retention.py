#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Remove older backups of a database, never the one to go back to."""

from __future__ import annotations

DOCUMENTATION = r"""
module: database_backup_retention
short_description: Remove older backups of a database, never the one to go back to
version_added: 0.1.0
description:
  - Removes what exceeds O(keep_count) or O(keep_days) among the backups that M(rnltlabs.unified_user.database_backup) made
    of O(database) below O(directory).
  - The newest proven backup always stays, and so does everything that is newer. Before anything is removed, every file of it is
    compared with its sha256.
  - Only complete backups that bear the name they were made under are removed. What is incomplete, renamed, a symbolic link, of
    another database or of another server's database of that name is left alone. To keep a backup for good, rename its directory.
  - The same limits hold at each of O(copies). What a restore test has proven is known there by the proof that it wrote.
  - No server is needed.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.copies
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: full
    details: Returns what would be removed.
  diff_mode:
    support: none
options:
  directory:
    description:
      - The directory that holds the backups, on the host that the module runs on.
    type: path
    default: /var/backups/unified_user
  database:
    description:
      - The database whose backups are meant.
    type: str
    required: true
  keep_count:
    description:
      - How many proven backups to keep. An unproven one goes when this many newer ones are proven.
      - V(0) sets no limit.
    type: int
    default: 0
  keep_days:
    description:
      - How old, in days, a backup may become. V(0) sets no limit.
    type: int
    default: 0
seealso:
  - module: rnltlabs.unified_user.database_backup
  - module: rnltlabs.unified_user.database_restore
"""

EXAMPLES = r"""
- name: Keep the five newest proven backups, none longer than a month
  rnltlabs.unified_user.database_backup_retention:
    database: massava
    keep_count: 5
    keep_days: 30
"""

RETURN = r"""
planned:
  description: Whether this was check mode, so that nothing was removed.
  returned: success
  type: bool
removed:
  description: Backups that exceeded a limit, newest first.
  returned: success
  type: list
  elements: dict
  contains: &verdict
    path:
      description: Its directory.
      type: str
    snapshot_time:
      description: The moment whose state it holds, in UTC.
      type: str
    proven:
      description: Whether a restore test has proven it.
      type: bool
    reason:
      description: Why it went or stayed.
      type: str
kept:
  description: Backups that stay, newest first.
  returned: success
  type: list
  elements: dict
  contains: *verdict
copies:
  description: For each of O(copies) its label as C(place), and C(removed), C(kept) and C(left_alone) there.
  returned: success
  type: list
  elements: dict
left_alone:
  description: What bears the name of a backup of O(database) and is not a complete one of it, with the C(reason).
  returned: success
  type: list
  elements: dict
  sample: [{path: /var/backups/unified_user/massava-20251101T220000Z, reason: dump/toc.dat is missing or not whole}]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_copies import COPIES_ARGUMENT
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_retention import retain
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "default": "/var/backups/unified_user"},
            "database": {"type": "str", "required": True},
            "copies": COPIES_ARGUMENT,
            "keep_count": {"type": "int", "default": 0},
            "keep_days": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    try:
        result = retain(module.params, module.check_mode)
    except UnifiedUserError as error:
        module.fail_json(msg=str(error), **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
