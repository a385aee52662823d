#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Back up a database so that a restore can be proven."""

from __future__ import annotations

DOCUMENTATION = r"""
module: database_backup
short_description: Back up a PostgreSQL database so that a restore can be proven
version_added: 0.1.0
description:
  - Dumps O(login_db) with C(pg_dump) into a new directory C(<database>-<UTC time>) below O(directory).
  - Row counts and content sums of every table and the catalogue are taken in the dump's own snapshot and written into
    C(manifest.json) beside the dump, with the sha256 of every file. So the proof holds while the application goes on writing.
  - Roles, their memberships and settings lie beside it as C(globals.sql), without passwords. They are for a restore on another
    server, with C(psql --file). Where the role may not read them, the manifest and a warning say so.
  - The directory gets its name when everything in it is complete. Whatever goes wrong, nothing is left that looks like a backup;
    what a killed run leaves is hidden, and the next run removes it.
  - With O(engine=pgbackrest) pgBackRest takes a backup set of the whole server, for databases too large for dumps, and a restore point
    is set by name after it. For some milliseconds no table can be written, so that the counts and sums, which are taken afterwards in a
    snapshot of these milliseconds, are those of the restore point. The new directory holds the manifest, with the sha256 of the set's own
    manifests and of the WAL up to the restore point; the data stays in the repository.
  - Every call takes a new backup.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.pgbackrest
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: full
    details: Looks for the client program and free disk, and returns where the backup would be.
  diff_mode:
    support: none
options:
  engine:
    description:
      - What takes the backup. V(pgbackrest) runs on the server's own host, as its user or as root, and needs the stanza in
        O(pgbackrest). The role must be allowed to set restore points, as superusers are, and to lock the tables.
      - With V(pgbackrest), O(jobs), O(compression), O(compression_level), O(required_bytes) and O(bin_dir) mean nothing;
        pgBackRest has settings of its own for these, and for encryption and further copies. Nothing is expired.
    type: str
    default: pg_dump
    choices: [pg_dump, pgbackrest]
  directory:
    description:
      - The directory that holds the backups, on the host that the module runs on. Made with mode 0700 if it is missing.
    type: path
    default: /var/backups/unified_user
  format:
    description:
      - What C(pg_dump) writes. V(directory) is dumped by several workers, V(custom) is one file.
      - V(auto) is V(custom) for what is to be encrypted, else V(directory).
      - V(plain) is refused, because C(pg_restore) cannot read it and so nobody could prove it or go back with it.
    type: str
    default: auto
    choices: [auto, directory, custom, plain]
  jobs:
    description:
      - How many workers dump in directory format. Each takes a connection of its own.
    type: int
    default: 2
  compression:
    description:
      - How C(pg_dump) compresses. V(lz4) and V(zstd) need one of PostgreSQL 16 or later that was built with it, and a
        C(pg_restore) that was built with it wherever the backup is to be restored.
      - V(auto) takes the first of V(zstd), V(lz4) and V(gzip) that this C(pg_dump) can.
    type: str
    default: gzip
    choices: [auto, gzip, lz4, zstd]
  compression_level:
    description:
      - Level of the compression, from 1, the fastest, to 9 (V(gzip)), 12 (V(lz4)) or 22 (V(zstd)).
      - V(0) is none at all, with O(compression=gzip) and O(compression=auto) only.
    type: int
    default: 1
  minimum_bytes:
    description:
      - A dump that is smaller, in bytes, is a failure. It guards against having dumped the wrong database.
    type: int
    default: 1
  required_bytes:
    description:
      - How much free disk, in bytes, is asked for before the dump begins.
      - The size of the database, which is more than a dump of it needs, if not given.
    type: int
  lock_wait_timeout:
    description:
      - How long to wait, in seconds, for a table that another session has locked exclusively.
    type: float
    default: 30
  bin_dir:
    description:
      - The directory of C(pg_dump) and C(pg_dumpall). They must not be older than the server.
      - If not given, C(PATH) and the directories that packages use are searched for one of the server's major, else the next newer one.
    type: path
  encryption_recipients:
    description:
      - Public keys that the dump and C(globals.sql) are encrypted for, with the program C(age), which must be in C(PATH). The identity
        of any of them decrypts. Native keys (C(age1...)) and SSH public keys will do.
      - C(pg_dump) writes into C(age), so that plaintext never is on a disk. That needs one stream, so O(format=directory) is refused.
      - C(manifest.json) stays readable. It holds names of tables, counts, sums and digests, and no row.
    type: list
    elements: str
    default: []
notes:
  - The password is handed to C(pg_dump) in its environment, never as an argument. pgBackRest connects as its own configuration says.
  - pgBackRest does not back up the rows of unlogged tables. They count as empty, and a warning names them.
  - Large objects are part of the dump and of the proof. What extensions own is left to them.
seealso:
  - module: rnltlabs.unified_user.database_restore
"""

EXAMPLES = r"""
- name: Back up before the migration
  rnltlabs.unified_user.database_backup:
    login_db: massava
    login_unix_socket: /var/run/postgresql
    minimum_bytes: 1000000
  register: __backup

- name: Back up with pgBackRest
  rnltlabs.unified_user.database_backup:
    login_db: massava
    login_unix_socket: /var/run/postgresql
    engine: pgbackrest
    pgbackrest:
      stanza: massava
      type: diff

- name: Prove it
  rnltlabs.unified_user.database_restore:
    login_db: massava
    login_unix_socket: /var/run/postgresql
    backup: "{{ __backup.path }}"
"""

RETURN = r"""
path:
  description: The directory of the backup. In check mode, what it would be called.
  returned: success
  type: str
  sample: /var/backups/unified_user/massava-20251101T220000Z
planned:
  description: Whether this was check mode, so that there is no backup at RV(path).
  returned: success
  type: bool
manifest:
  description: The manifest's file.
  returned: not in check mode
  type: str
sha256:
  description: Digest over the sha256 of every file of the backup.
  returned: not in check mode
  type: str
size_bytes:
  description: Size of the dump, in bytes.
  returned: not in check mode
  type: int
snapshot_time:
  description: The moment whose state the backup holds, in UTC.
  returned: not in check mode
  type: str
tables:
  description: Rows of each table in the backup.
  returned: not in check mode
  type: list
  elements: dict
  sample: [{name: public.bookings, rows: 312}]
globals:
  description: Whether C(globals.sql) is part of the backup, and why not.
  returned: not in check mode
  type: dict
  sample: {included: true, reason: null}
rows:
  description: Rows of all tables together.
  returned: not in check mode
  type: int
removed_leftovers:
  description: What killed runs had left and this one removed.
  returned: not in check mode
  type: list
  elements: str
server_version:
  description: Version of the server.
  returned: success
  type: str
compression:
  description: What the dump is compressed with, or would be.
  returned: success
  type: dict
  sample: {method: zstd, level: 1}
format:
  description: What the dump is written as, or would be; V(pgbackrest) for a backup set of that.
  returned: success
  type: str
  sample: directory
encrypted:
  description: Whether it is encrypted, or would be.
  returned: success
  type: bool
client_version:
  description: Version of C(pg_dump), or of pgBackRest.
  returned: success
  type: str
restore_point:
  description: The restore point's name.
  returned: with O(engine=pgbackrest), not in check mode
  type: str
writers_held_ms:
  description: How long no table could be written, in milliseconds.
  returned: with O(engine=pgbackrest), not in check mode
  type: int
restore_command:
  description: What brings the whole server back to the restore point, for the time when it is stopped.
  returned: with O(engine=pgbackrest), not in check mode
  type: str
duration_ms:
  description: Duration of the whole, in milliseconds.
  returned: not in check mode
  type: int
executed_queries:
  description: The statements run, with placeholders in the place of values.
  returned: success
  type: list
  elements: str
"""

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup import take_backup
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_encryption import hidden
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._pgbackrest import ARGUMENT as PGBACKREST_ARGUMENT


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(
        argument_spec={
            "engine": {"type": "str", "default": "pg_dump", "choices": ["pg_dump", "pgbackrest"]},
            "pgbackrest": PGBACKREST_ARGUMENT,
            "directory": {"type": "path", "default": "/var/backups/unified_user"},
            "format": {"type": "str", "default": "auto", "choices": ["auto", "directory", "custom", "plain"]},
            "jobs": {"type": "int", "default": 2},
            "compression": {"type": "str", "default": "gzip", "choices": ["auto", "gzip", "lz4", "zstd"]},
            "compression_level": {"type": "int", "default": 1},
            "minimum_bytes": {"type": "int", "default": 1},
            "required_bytes": {"type": "int"},
            "lock_wait_timeout": {"type": "float", "default": 30},
            "bin_dir": {"type": "path"},
            "encryption_recipients": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    # A module repeats its arguments, whatever it answers.
    module.no_log_values.update(hidden(module.params["encryption_recipients"]))
    module.run(lambda module: take_backup(module.params, module.check_mode))


if __name__ == "__main__":
    main()
