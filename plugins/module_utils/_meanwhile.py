# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A question that another session answers while this one goes on with its work."""

from __future__ import annotations

import concurrent.futures
import contextlib
from typing import Any, Callable, Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, psycopg2
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError


@contextlib.contextmanager
def spare(connect: Callable[[], Database] | None, set_up: Callable[[Database], None]) -> Iterator[Database | None]:
    """Open another session for the duration of the block, if there is room for one; before locks are taken, as a pool may keep it waiting.

    Args:
        connect: opens it; or None.
        set_up: makes it fit for its work, with a statement at least: behind a pooler only that tells whether there is a server for it.

    Yields:
        The session, or None.
    """
    second = None
    try:
        second = connect() if connect else None
        if second:
            set_up(second)
    except (UnifiedUserError, psycopg2.Error):
        if second:
            second.close()
        second = None
    try:
        yield second
    finally:
        if second:
            second.close()


@contextlib.contextmanager
def meanwhile(database: Database, second: Database | None, ask: Callable[[Database], Any]) -> Iterator[Callable[[], Any]]:
    """Have a question answered while the block goes on; where there is no other session, or it is lost, this one answers when asked.

    Args:
        database: the session that goes on.
        second: another one, which nobody else uses; or None.
        ask: asks in the session it is given, where it writes to nothing but temporary tables, about nothing that this session's transaction has
            changed.

    Yields:
        What returns the answer, once it is there.
    """
    if second is None:
        yield lambda: ask(database)
        return

    def answer() -> Any:
        try:
            return asked.result()
        except psycopg2.Error:
            return ask(database)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, second)
        try:
            yield answer
        finally:
            # Between two statements it would not hear of it.
            while not asked.done():
                with contextlib.suppress(psycopg2.Error):
                    second.connection.cancel()
                concurrent.futures.wait([asked], 0.1)
            database.executed_queries += second.executed_queries
            second.executed_queries = []
