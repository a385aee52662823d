"""Fills an empty database with the application as it is before the migration: its tables, Prisma's history, the reference case.

Runs on the database host as the server's superuser, with the checkout's tests/app beside it. The tables belong to the
application's role. Does nothing, and says so, when the history is there already.

    python3 -m load_legacy DATABASE ROLE
"""

import contextlib
import sys

import psycopg2
from psycopg2 import sql

from tests.app import migration_history, reference_data


def main() -> None:
    database, role = sys.argv[1:]
    with contextlib.closing(psycopg2.connect(dbname=database)) as connection, contextlib.closing(connection.cursor()) as cursor:
        connection.autocommit = True
        cursor.execute("SELECT to_regclass('public._prisma_migrations') IS NOT NULL")
        if cursor.fetchone()[0]:
            print("present")
            return
        cursor.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        migration_history.apply_migrations(connection, migration_history.legacy_migrations())
        cursor.execute("RESET ROLE")
        reference_data.load(connection)
        print("loaded")


if __name__ == "__main__":
    main()
