#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Copy a backup to further places."""

from __future__ import annotations

DOCUMENTATION = r"""
module: database_backup_copy
short_description: Copy a backup to further places and compare what is stored there
version_added: 0.1.0
description:
  - Brings a backup of M(rnltlabs.unified_user.database_backup) to a mounted directory, to another host over SSH or into an
    S3-compatible bucket, all of them in one call.
  - Every file is compared with its sha256 before it leaves, and again at the far end. On another host C(sha256sum) runs there; from a
    bucket the bytes are read back. Only then the copy gets its name, so that whatever bears the name is whole.
  - A copy that is there already is compared again and left as it is.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.copies
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: full
    details: Looks whether the places can be reached and what they hold.
  diff_mode:
    support: none
options:
  backup:
    description:
      - The directory of the backup, on the host that the module runs on.
    type: path
    required: true
seealso:
  - module: rnltlabs.unified_user.database_backup
  - module: rnltlabs.unified_user.database_restore
"""

EXAMPLES = r"""
- name: Keep the backup on a mounted disk and on another host
  rnltlabs.unified_user.database_backup_copy:
    backup: "{{ __backup.path }}"
    copies:
      - kind: path
        path: /mnt/backups
      - kind: ssh
        host: vault.example.com
        user: backup
        path: /srv/backups/massava
"""

RETURN = r"""
planned:
  description: Whether this was check mode, so that nothing was copied.
  returned: success
  type: bool
path:
  description: The directory of the backup.
  returned: success
  type: str
sha256:
  description: Digest over the sha256 of every file of the backup.
  returned: success
  type: str
copies:
  description: What was done at each place.
  returned: success
  type: list
  elements: dict
  contains:
    place:
      description: The label of the place, by which O(rnltlabs.unified_user.database_restore#module:source) can choose it.
      type: str
    changed:
      description: Whether the copy was made now.
      type: bool
    size_bytes:
      description: Size of the copy.
      type: int
    duration_ms:
      description: Duration, comparison included, in milliseconds.
      type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_copies import COPIES_ARGUMENT, copy_backup
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import ending_in_order
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"backup": {"type": "path", "required": True}, "copies": COPIES_ARGUMENT},
        supports_check_mode=True,
    )
    try:
        with ending_in_order():
            result = copy_backup(module.params, module.check_mode)
    except UnifiedUserError as error:
        module.fail_json(msg=str(error), **error.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
