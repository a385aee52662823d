# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking an SQL script apart: its statements, where each begins, and which of them one transaction cannot hold.

Statements end where psql ends them: at a semicolon outside of quotes, comments, parentheses and SQL function bodies.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterator

# The order matters: a whole quote is tried before one without an end, and both before the word that could be the prefix.
_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n\r]*)
  | (?P<comment>/\*)
  | (?P<string>[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*')
  | (?P<dollar>\$(?:[^\W\d]\w*)?\$)
  | (?P<quoted>"(?:[^"]|"")*")
  | (?P<open>[eE]?'|")
  | (?P<word>[^\W\d][\w$]*)
  | (?P<number>\d[\w.]*)
  | (?P<symbol>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")


class UnfinishedScript(ValueError):
    """A quote or a comment has no end.

    Attributes:
        line: where it begins, from 1 on.
    """

    def __init__(self, line: int) -> None:
        self.line = line
        super().__init__(f"the quote or comment that begins in line {line} has no end")


@dataclass(frozen=True)
class Statement:
    """One statement of a script.

    Attributes:
        number: its place among the statements, from 1 on.
        line: the line of its first word, from 1 on.
        text: from its first word up to its semicolon.
        words: its words outside of parentheses in capitals, for REINDEX its options in them, too; quoted names and values
            stand as an empty string.
    """

    number: int
    line: int
    text: str
    words: tuple[str, ...]

    @property
    def kind(self) -> str:
        """The words that say what it does, e.g. ``CREATE TABLE``; never a name or a value."""
        return " ".join(word for word in self.words[:2] if word in _KINDS) or "statement"

    @property
    def is_transaction_frame(self) -> bool:
        """Whether it only begins or commits a transaction, which our own transaction stands for."""
        first, second = (*self.words, "", "")[:2]
        return first in ("BEGIN", "START", "COMMIT", "END") and second != "PREPARED"

    @property
    def obstacle(self) -> str | None:
        """Why the statement cannot run inside of one transaction, or None."""
        sentence = " ".join(self.words)
        for pattern, reason in _OBSTACLES:
            if pattern.match(sentence):
                return reason
        return None


_KINDS = frozenset(
    (
        *("ALTER", "CALL", "COMMENT", "COPY", "CREATE", "DELETE", "DO", "DROP", "GRANT", "INSERT", "MERGE", "REVOKE", "SELECT", "SET"),
        *("TRUNCATE", "UPDATE", "WITH", "EXTENSION", "FUNCTION", "INDEX", "INTO", "MATERIALIZED", "PROCEDURE", "SCHEMA", "SEQUENCE"),
        *("TABLE", "TRIGGER", "TYPE", "UNIQUE", "VIEW"),
    )
)

_OBSTACLES = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"(CREATE (UNIQUE )?|DROP )INDEX CONCURRENTLY\b", "{} cannot run inside a transaction"),
        (r"REINDEX (.*CONCURRENTLY|SCHEMA|DATABASE|SYSTEM)\b", "{} cannot run inside a transaction"),
        (r"ALTER TABLE .*\bDETACH PARTITION .*\bCONCURRENTLY$", "{} cannot run inside a transaction"),
        (r"VACUUM\b", "{} cannot run inside a transaction"),
        (r"CLUSTER( VERBOSE)?$", "{} of all tables cannot run inside a transaction"),
        (r"(CREATE|DROP) (DATABASE|TABLESPACE|SUBSCRIPTION)\b", "{} cannot run inside a transaction"),
        (r"ALTER (SYSTEM|DATABASE \S* SET TABLESPACE)\b", "{} cannot run inside a transaction"),
        (r"DISCARD ALL$", "{} cannot run inside a transaction"),
        (r"(COMMIT|ROLLBACK) PREPARED\b|PREPARE TRANSACTION\b", "{} would leave our transaction"),
        (r"ABORT\b|ROLLBACK(?! (WORK |TRANSACTION )?TO\b)", "{} would throw the migration away"),
        (r"COPY .*\b(FROM STDIN|TO STDOUT)\b", "{} needs a client that sends or takes the rows"),
    )
)


def split_script(script: str) -> list[Statement]:
    """Return the statements of a script; comments between them and empty ones are left out.

    Args:
        script: SQL as a migration tool sends it, with ``standard_conforming_strings`` on.

    Raises:
        UnfinishedScript: a quote or a comment has no end.
    """
    return [Statement(number, script.count("\n", 0, start) + 1, script[start:end], words) for number, (start, end, words) in enumerate(_pieces(script), 1)]


def describe_obstacle(statement: Statement) -> str:
    """Return the obstacle of a statement as a clause that names line and kind."""
    words = [word for word in statement.words if word][:3]
    if "CONCURRENTLY" in statement.words and "CONCURRENTLY" not in words:
        words.append("… CONCURRENTLY")
    return f"line {statement.line}: {(statement.obstacle or '').format(' '.join(words))}"


def _pieces(script: str) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Yield start, end and words of each statement."""
    start, words, depth, body = None, [], 0, 0
    for kind, begin, end in tokens(script):
        text = script[begin:end]
        if text == ";" and depth == 0 and body == 0:
            if start is not None:
                yield start, begin, tuple(words)
            start, words = None, []
            continue
        if start is None:
            start = begin
        if text == "(":
            depth += 1
        elif text == ")":
            depth = max(depth - 1, 0)
        elif kind in ("word", "quoted", "string") and (depth == 0 or words[:1] == ["REINDEX"]):
            words.append(text.upper() if kind == "word" else "")
            body = _body_depth(words, body)
    if start is not None:
        yield start, len(script.rstrip()), tuple(words)


def _body_depth(words: list[str], body: int) -> int:
    """Follow BEGIN ATOMIC … END of a function's body, in which semicolons end nothing."""
    routine = words[0] == "CREATE" and (words[3:4] if words[1:2] == ["OR"] else words[1:2]) in (["FUNCTION"], ["PROCEDURE"])
    if not routine:
        return 0
    if words[-1] == "BEGIN" or (words[-1] == "CASE" and body):
        return body + 1
    if words[-1] == "END" and body:
        return body - 1
    return body


def tokens(script: str) -> Iterator[tuple[str, int, int]]:
    """Yield kind, start and end of every token but spaces and comments."""
    position = 0
    while position < len(script):
        found = _TOKEN.match(script, position)
        kind, end = found.lastgroup, found.end()
        if kind == "comment":
            end = _end_of_comment(script, position)
        elif kind == "dollar":
            closing = script.find(found.group(), end)
            if closing < 0:
                raise UnfinishedScript(script.count("\n", 0, position) + 1)
            kind, end = "string", closing + len(found.group())
        elif kind == "open":
            raise UnfinishedScript(script.count("\n", 0, position) + 1)
        if kind not in ("space", "comment"):
            yield kind, position, end
        position = end


def _end_of_comment(script: str, start: int) -> int:
    """Return where a comment ends; comments nest."""
    depth, position = 1, start + 2
    while depth:
        edge = _COMMENT_EDGE.search(script, position)
        if not edge:
            raise UnfinishedScript(script.count("\n", 0, start) + 1)
        depth += 1 if edge.group() == "/*" else -1
        position = edge.end()
    return position
