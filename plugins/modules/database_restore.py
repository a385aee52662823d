#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prove a backup by restoring it, or restore it beside the live database."""

from __future__ import annotations

DOCUMENTATION = r"""
module: database_restore
short_description: Prove a backup by restoring it, or restore it beside the live database
version_added: 0.1.0
description:
  - Works on backups of M(rnltlabs.unified_user.database_backup). The live database is never written to.
  - Every file is compared with its sha256 in the manifest before anything is restored.
  - A restored copy is compared with the manifest in row counts and content sums of every table, and in schemas, extensions, types,
    tables, columns, indexes, constraints, sequences, functions, triggers, policies, owners and privileges.
  - A backup that pgBackRest took is of a whole server. With O(state=tested) it is restored to its restore point as a scratch server of its
    own beside the data directory, and compared there; the original may be down. With O(state=restored) the database is taken out of such
    a scratch server, by C(pg_dump) piped into C(pg_restore). The scratch server listens on a socket in a closed directory only, archives
    nothing, loads no library, and is removed whatever happens.
  - The copy is marked as ours in its comment. What a killed run leaves is recognised by that and dropped by the next one;
    a database that somebody else made is never touched.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.copies
  - rnltlabs.unified_user.pgbackrest
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: full
    details: Verifies the files and looks for everything that would stop a restore.
  diff_mode:
    support: none
options:
  state:
    description:
      - V(verified) only compares the files with the manifest. No server is needed. pgBackRest reads its whole repository for this.
      - V(compared) also compares O(login_db), as it is now, with the manifest, and changes nothing. Differences are returned, they
        are no failure. This tells what going back would lose.
      - V(tested) restores into a scratch database, compares, writes C(proof.json) beside the manifest and drops the scratch database
        whatever happens. Any difference is a failure, and takes an earlier proof away.
      - V(restored) takes a backup that is proven, restores and compares it and keeps the copy. One that an earlier run has finished
        is compared again and taken as it is.
    type: str
    default: tested
    choices: [verified, compared, tested, restored]
  backup:
    description:
      - The directory of the backup.
      - The newest one of O(login_db) below O(directory) if not given; with O(state=restored), the newest that is proven.
    type: path
  directory:
    description:
      - The directory that holds the backups.
    type: path
    default: /var/backups/unified_user
  source:
    description:
      - Where to take the backup from. V(last) is the last of O(copies), the one furthest away, and O(directory) where there are none;
        V(directory) is always O(directory). Else the label of a copy, as RV(backup.path) and errors show it, such as
        C(ssh backup@vault:/srv/backups).
      - A copy on another host or in a bucket is brought into a hidden directory below O(directory) for the time of the restore. That needs
        room for one backup.
      - With O(state=tested) the proof is written beside the backup in O(directory) and beside each of its O(copies).
    type: str
    default: last
  require_proof:
    description:
      - Whether only a backup will do that a restore test has proven, and whose files are still those. O(state=restored) implies it.
    type: bool
    default: false
  target:
    description:
      - The database to restore into.
      - The name of O(login_db) with C(_restore_test) or, with O(state=restored), C(_restored) appended, if not given.
    type: str
  jobs:
    description:
      - How many workers restore. Each takes a connection of its own. An encrypted backup is restored by one.
    type: int
    default: 2
  bin_dir:
    description:
      - The directory of C(pg_restore). It must not be older than the C(pg_dump) that made the backup.
      - If not given, C(PATH) and the directories that packages use are searched for one of the server's major, else the next newer one.
    type: path
  decryption_identity_file:
    description:
      - The file with the identity (secret key) that opens an encrypted backup, on the host that the module runs on.
      - The dump is decrypted into C(pg_restore), never to a disk.
    type: path
  maintenance_db:
    description:
      - The database to be connected to while another one is created or dropped.
    type: str
    default: postgres
notes:
  - The role needs CREATEDB, and to be a superuser or a member of the roles that own what is in the dump.
  - The connection options may name another server than the one that was backed up, of the same major or a newer one. The roles that own
    objects must exist there; C(globals.sql) has them. The primary may be down.
  - Subscriptions are not restored, so that the copy never subscribes to anything.
seealso:
  - module: rnltlabs.unified_user.database_backup
  - module: rnltlabs.unified_user.database_swap
"""

EXAMPLES = r"""
- name: Prove the newest backup
  rnltlabs.unified_user.database_restore:
    login_db: massava
    login_unix_socket: /var/run/postgresql

- name: See what has been written since
  rnltlabs.unified_user.database_restore:
    login_db: massava
    login_unix_socket: /var/run/postgresql
    state: compared
  register: __since

- name: Show it
  ansible.builtin.debug:
    msg: "{{ __since.tables | selectattr('differing') }}"

- name: Make a copy to go back to
  rnltlabs.unified_user.database_restore:
    login_db: massava
    login_unix_socket: /var/run/postgresql
    state: restored
"""

RETURN = r"""
backup:
  description: The backup that was used.
  returned: success
  type: dict
  contains:
    path:
      description: Its directory, or the copy's label and its name.
      type: str
    sha256:
      description: Digest over the sha256 of every file of the dump.
      type: str
    size_bytes:
      description: Size of the dump.
      type: int
    snapshot_time:
      description: The moment whose state it holds, in UTC.
      type: str
    proven:
      description: Whether this very dump has been restored and compared.
      type: bool
    proven_at:
      description: When that was, in UTC, or none.
      type: str
    restore_command:
      description: What brings the whole server back with pgBackRest, for the time when it is stopped; none for a dump.
      type: str
proven:
  description: Whether the restored copy was what the manifest says.
  returned: when O(state=tested) or O(state=restored)
  type: bool
proof:
  description: The file that says so.
  returned: when O(state=tested)
  type: str
proof_at:
  description: The directory and the copies beside which the proof was written.
  returned: when O(state=tested)
  type: list
  elements: str
target:
  description: The database that was restored into, or the directory of the scratch server.
  returned: when O(state=tested) or O(state=restored)
  type: str
tables:
  description:
    - Each table with the rows that the manifest has (C(expected)) and the rows found (C(actual)), none where there is no such table.
    - C(problem) is C(rows), C(content), C(missing), C(unexpected) or none.
  returned: unless O(state=verified)
  type: list
  elements: dict
  sample: [{name: public.bookings, expected: 312, actual: 312, differing: false, problem: null}]
catalogue:
  description: Objects other than rows that differ.
  returned: unless O(state=verified)
  type: list
  elements: dict
  sample: [{kind: index, name: public.bookings_pkey, problem: missing}]
not_compared:
  description:
    - Kinds of objects that the majors of the two servers spell differently, so that they were restored and not compared.
    - Views, rules and the privilege MAINTAIN at most, and none where both servers are of one major.
  returned: unless O(state=verified)
  type: list
  elements: str
catalogue_objects:
  description: How many objects were compared.
  returned: when O(state=tested) or O(state=restored)
  type: int
rows:
  description: Rows of all tables in the copy.
  returned: when O(state=tested) or O(state=restored)
  type: int
disk_check:
  description: Whether the server's free disk could be looked at from here, and was enough.
  returned: when O(state=tested) or O(state=restored)
  type: str
dropped_leftover:
  description: Whether a copy that a killed run had left was dropped first.
  returned: when O(state=tested) or O(state=restored)
  type: bool
restore_ms:
  description: Duration of C(pg_restore), or of restoring and recovering the scratch server, in milliseconds.
  returned: when O(state=tested) or O(state=restored), not in check mode
  type: int
duration_ms:
  description: Duration of the whole, in milliseconds.
  returned: not in check mode
  type: int
executed_queries:
  description: The statements run, with placeholders in the place of values.
  returned: unless O(state=verified)
  type: list
  elements: str
"""

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_copies import COPIES_ARGUMENT
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._pgbackrest import ARGUMENT as PGBACKREST_ARGUMENT
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._restore import restore


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(
        argument_spec={
            "state": {"type": "str", "default": "tested", "choices": ["verified", "compared", "tested", "restored"]},
            "backup": {"type": "path"},
            "directory": {"type": "path", "default": "/var/backups/unified_user"},
            "copies": COPIES_ARGUMENT,
            "source": {"type": "str", "default": "last"},
            "require_proof": {"type": "bool", "default": False},
            "target": {"type": "str"},
            "jobs": {"type": "int", "default": 2},
            "bin_dir": {"type": "path"},
            "decryption_identity_file": {"type": "path"},
            "pgbackrest": PGBACKREST_ARGUMENT,
            "maintenance_db": {"type": "str", "default": "postgres"},
        },
        supports_check_mode=True,
    )
    module.run(lambda module: restore(module.params, module.check_mode))


if __name__ == "__main__":
    main()
