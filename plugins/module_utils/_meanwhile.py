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
def meanwhile(database: Database, connect: Callable[[], Database] | None, ask: Callable[[Database], Any]) -> Iterator[Callable[[], Any]]:
    """Have a question answered while the block goes on.

    Where there is no room for another session, or it is lost, this session answers when it is asked.

    Args:
        database: the session that goes on.
        connect: opens another one of the same kind; or None, for this one to answer.
        ask: asks with SELECTs alone, in the session it is given, about nothing that this session's transaction has changed.

    Yields:
        What returns the answer, once it is there.
    """
    try:
        second = connect() if connect else None
    except (UnifiedUserError, psycopg2.Error):
        second = None
    if second is None:
        yield lambda: ask(database)
        return

    def answer() -> Any:
        try:
            return asked.result()
        except psycopg2.Error:
            return ask(database)

    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, second)
            try:
                yield answer
            finally:
                if not asked.done():
                    with contextlib.suppress(psycopg2.Error):
                        second.connection.cancel()
    finally:
        second.close()
        database.executed_queries += second.executed_queries
