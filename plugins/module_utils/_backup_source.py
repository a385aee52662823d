# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a manifest says about the database and the server that a backup is taken of, whatever takes it."""

from __future__ import annotations

from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database

_PROPERTIES = """
SELECT d.datname AS name, pg_encoding_to_char(d.encoding) AS encoding, d.datcollate AS collate, d.datctype AS ctype,
       coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') AS provider,
       coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale,
       to_jsonb(d) ->> 'daticurules' AS icu_rules,
       pg_database_size(d.oid) AS size_bytes
FROM pg_database AS d WHERE d.datname = current_database()
"""


def read_properties(database: Database) -> dict[str, Any]:
    """Return the name, encoding, locale and size in bytes of the database that a session is on."""
    return database.row(_PROPERTIES)


def read_server(database: Database) -> dict[str, Any]:
    """Return the server's version, its major, and the number that tells it from all others, None if the role may not ask for it."""
    identifier = None
    if database.value("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')"):
        identifier = database.value("SELECT system_identifier::text FROM pg_control_system()")
    return {
        "version": database.value("SHOW server_version"),
        "major": database.connection.server_version // 10000,
        "system_identifier": identifier,
    }
