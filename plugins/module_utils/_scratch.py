# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Databases that we make beside the live one: marked as ours, so that a later run may drop what a killed one left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, describe, psycopg2, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

_MADE_BY = "rnltlabs.unified_user"
_NAME_BYTES = 63

#: Unborn is what was created and not yet marked: closed, for nobody, and as empty as template0.
_LOOK_UP = """
SELECT shobj_description(d.oid, 'pg_database') AS comment,
       NOT d.datallowconn AND d.datconnlimit = 0 AND pg_database_size(d.oid)
           <= 2 * (SELECT pg_database_size(t.oid) FROM pg_database AS t WHERE t.datname = 'template0') AS unborn
FROM pg_database AS d WHERE d.datname = %s
"""


def derived_name(database: str, suffix: str) -> str:
    """Return a database name with a suffix, shortened to PostgreSQL's 63 bytes without cutting a character."""
    room = _NAME_BYTES - len(suffix.encode("utf-8"))
    return database.encode("utf-8")[:room].decode("utf-8", "ignore") + suffix


@dataclass(frozen=True)
class Found:
    """What stands under a database's name.

    Attributes:
        exists: there is such a database.
        mark: what we wrote about it, empty if it is not ours.
        unborn: it was created by us and the run ended before it could be marked.
    """

    exists: bool
    mark: dict[str, Any]
    unborn: bool


def look_up(admin: Database, name: str) -> Found:
    """Find out whether a database exists and whether it is ours."""
    row = admin.row(_LOOK_UP, (name,))
    if row is None:
        return Found(False, {}, False)
    return Found(True, parse_mark(row["comment"]), row["comment"] is None and row["unborn"])


def parse_mark(comment: str | None) -> dict[str, Any]:
    """Read a database's comment; anything but a mark of ours is an empty dict."""
    try:
        mark = json.loads(comment or "")
    except ValueError:
        return {}
    return mark if isinstance(mark, dict) and mark.get("made_by") == _MADE_BY else {}


def write_mark(admin: Database, name: str, **facts: Any) -> None:
    """Mark a database as ours, with what is known about it."""
    set_comment(admin, name, json.dumps({"made_by": _MADE_BY, **facts}, sort_keys=True))


def set_comment(admin: Database, name: str, comment: str | None) -> None:
    """Set or remove a database's comment."""
    admin.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(comment)))


def hold_name(admin: Database, name: str) -> None:
    """Keep other runs away from a database's name as long as the session lasts.

    Raises:
        UnifiedUserError: another run is at work on it.
    """
    if not admin.value("SELECT pg_try_advisory_lock(hashtextextended('unified_user database ' || %s, 0))", (name,)):
        raise UnifiedUserError(
            f"use the name {name} for a restored copy", "another run is at work on it", "Wait until it has ended, then run the same command again"
        )


def require_createdb(admin: Database) -> None:
    """Raise unless the current role may create databases."""
    row = admin.row("SELECT current_user AS role, rolcreatedb OR rolsuper AS allowed FROM pg_roles WHERE rolname = current_user")
    if not row["allowed"]:
        raise UnifiedUserError(
            "create a database to restore into",
            f"role {row['role']} has no CREATEDB privilege",
            f'Let a superuser run ALTER ROLE "{row["role"]}" CREATEDB, or set login_user or session_role to a role that has it',
        )


def create(admin: Database, name: str, properties: dict[str, Any], tablespace: str | None, **facts: Any) -> None:
    """Create an empty, marked database with the encoding and locale of another one.

    It is created closed and opened together with its mark, so that a run killed between the two leaves something recognisable.

    Args:
        admin: a session on another database.
        name: the new database's name, free.
        properties: ``properties`` of a manifest.
        tablespace: where it goes, None for the default.
        facts: what to write into the mark.
    """
    clauses = [
        sql.SQL("TEMPLATE template0"),
        sql.SQL("ENCODING {}").format(sql.Literal(properties["encoding"])),
        sql.SQL("LC_COLLATE {}").format(sql.Literal(properties["collate"])),
        sql.SQL("LC_CTYPE {}").format(sql.Literal(properties["ctype"])),
        sql.SQL("ALLOW_CONNECTIONS false CONNECTION LIMIT 0"),
    ]
    provider = {"i": "icu", "b": "builtin"}.get(properties["provider"])
    if provider:
        clauses.append(sql.SQL("LOCALE_PROVIDER {}").format(sql.Identifier(provider)))
        option = "ICU_LOCALE" if provider == "icu" else "BUILTIN_LOCALE"
        clauses.append(sql.SQL(option + " {}").format(sql.Literal(properties["locale"])))
        if properties.get("icu_rules"):
            clauses.append(sql.SQL("ICU_RULES {}").format(sql.Literal(properties["icu_rules"])))
    elif admin.connection.server_version >= 150000:
        clauses.append(sql.SQL("LOCALE_PROVIDER libc"))
    if tablespace:
        clauses.append(sql.SQL("TABLESPACE {}").format(sql.Identifier(tablespace)))
    try:
        admin.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), sql.SQL(" ").join(clauses)))
        with admin.transaction():
            write_mark(admin, name, **facts)
            admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true CONNECTION LIMIT -1").format(sql.Identifier(name)))
    except psycopg2.Error as error:
        raise UnifiedUserError(
            f"create database {name} to restore into",
            describe(error),
            f"Make sure this server has the locale of {properties['name']} and room for a copy, then run the same command again",
        ) from error


def drop(admin: Database, name: str) -> None:
    """Drop a database that `look_up` has shown to be ours, with the sessions of a run that was killed.

    Raises:
        UnifiedUserError: the server refused; the next run tries again.
    """
    try:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
    except psycopg2.Error as error:
        raise UnifiedUserError(
            f"drop our own database {name}", describe(error), f'The next run tries again; or run DROP DATABASE "{name}" yourself'
        ) from error
