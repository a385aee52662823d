"""A small application that writes all the while, each write with a mark of its own that must be found on the other side."""

from __future__ import annotations

import contextlib
import random
import secrets
import threading

import psycopg2

#: Table of one side -> the same rows on the other, and the column that holds the marks. No write changes how many rows there are.
SIDES = {"bookings": "new_bookings", "new_bookings": "bookings"}

_WRITE = {
    table: f'UPDATE {table} SET message = concat(message, %s) WHERE id = (SELECT id FROM {table} ORDER BY id OFFSET %s LIMIT 1)' for table in SIDES
}  # fmt: skip

_FIND = {table: f"SELECT count(*) FROM {other} WHERE strpos(message, %s) > 0" for table, other in SIDES.items()}


class LiveWriter:
    """Writes to some tables until it is stopped; a context manager.

    Args:
        connect: opens a connection of the application's role, in autocommit mode.
        tables: which of `SIDES` to write to, in turn.
        pause: between two writes, in seconds.
    """

    def __init__(self, connect, tables, pause: float = 0.05) -> None:
        self._connect = connect
        # Marks of other writers must not be taken for its own.
        self._name = secrets.token_hex(4)
        self._tables = list(tables)
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.written: list[tuple[str, str]] = []
        self.refused: list[str] = []

    def __enter__(self) -> LiveWriter:
        self._thread.start()
        return self

    def __exit__(self, *_exception) -> None:
        self._stop.set()
        self._thread.join(30)

    def _work(self) -> None:
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM bookings")
            rows = cursor.fetchone()[0]
            while not self._stop.wait(self._pause):
                table = self._tables[len(self.written) % len(self._tables)]
                mark = f" [live {self._name} {len(self.written)}]"
                try:
                    # Not cryptography: any booking will do.
                    cursor.execute(_WRITE[table], (mark, random.randrange(rows)))
                except psycopg2.Error as error:
                    self.refused.append(error.pgcode or type(error).__name__)
                else:
                    self.written.append((table, mark))

    def found(self) -> int:
        """How many of the writes are on the other side."""
        with contextlib.closing(self._connect()) as connection, connection.cursor() as cursor:
            total = 0
            for table, mark in self.written:
                cursor.execute(_FIND[table], (mark,))
                total += cursor.fetchone()[0]
        return total
