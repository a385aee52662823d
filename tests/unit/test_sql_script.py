# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking scripts apart, judged by PostgreSQL's own parser, and what one transaction cannot hold."""

from __future__ import annotations

import pglast
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql_script import UnfinishedScript, describe_obstacle, split_script
from hypothesis import given
from hypothesis import strategies as st

from tests.app.migration_history import migration_directories

PIECES = (
    "SELECT 1",
    "select 'a;b', 'it''s; \\', $1",
    r"SELECT E'\';' AS a, e'\\', U&'d\0061t' , B'01'",
    'CREATE TABLE "a;""b" ("--" text DEFAULT \'/*\', "select" int)',
    "SELECT $$;$$, $tag$ ; $$ $tag$, $ä$ ' ; $ä$",
    "INSERT INTO t$x$y VALUES (1, ';'), (2, ')')",
    "-- a comment; with 'quotes\nSELECT 2",
    "/* nested /* ; */ ' */ SELECT 3 /* ; */",
    "DO $do$ BEGIN RAISE NOTICE '%;', 1; END; $do$",
    "CREATE RULE r AS ON INSERT TO t DO ALSO (INSERT INTO a VALUES (1); INSERT INTO b VALUES (2))",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 ELSE 2 END; END",
    "CREATE OR REPLACE PROCEDURE p(a int) BEGIN ATOMIC INSERT INTO t VALUES (a); END",
    "CREATE FUNCTION g() RETURNS int LANGUAGE plpgsql AS 'BEGIN; RETURN 1; END'",
    "CREATE VIEW \"begin\" AS SELECT CASE WHEN 1 = 1 THEN 'x' END",
    "BEGIN",
    "COMMIT",
    'ALTER TABLE "Größe" ADD COLUMN ünï text',
    "SELECT 1e5, 0x1F, .5, 1_000, a.b.c, x::text[1], y ->> 'k', '{\"a\": \"\\\\\"}'::jsonb",
)
GLUE = st.sampled_from([";", ";\n", ";\r\n", "; -- done; really\n", ";\n\n/* between; */\n", ";;\n \t;"])


@given(st.lists(st.tuples(st.sampled_from(PIECES), GLUE), max_size=8), st.sampled_from(["", *PIECES]))
def test_statements_are_those_of_the_parser(pieces, last):
    script = "".join(piece + glue for piece, glue in pieces) + last
    ours = [statement.text for statement in split_script(script)]
    # The parser counts in characters of what it was given, and leaves leading comments where they are.
    theirs = [strip_comments(text) for text in pglast.split(script)]
    assert [text.strip() for text in ours] == [text for text in theirs if text]


def strip_comments(text):
    """Take away the comments before a statement."""
    text = text.strip()
    while text.startswith(("--", "/*")):
        if text.startswith("--"):
            text = text.partition("\n")[2].strip()
            continue
        depth, position = 0, 0
        while True:
            if text.startswith("/*", position):
                depth, position = depth + 1, position + 2
            elif text.startswith("*/", position):
                depth, position = depth - 1, position + 2
            else:
                position += 1
            if depth == 0:
                break
        text = text[position:].strip()
    return text


@pytest.mark.parametrize("directory", migration_directories(), ids=lambda directory: directory.name)
def test_the_application_s_migrations(directory):
    script = (directory / "migration.sql").read_text()
    statements = split_script(script)
    assert [strip_comments(text) for text in pglast.split(script)] == [statement.text for statement in statements]
    lines = script.splitlines()
    assert all(lines[statement.line - 1].startswith(statement.text.splitlines()[0][:20]) for statement in statements)
    assert not any(statement.obstacle for statement in statements)


def test_empty_scripts():
    assert split_script("") == split_script(" ;; \n") == split_script("-- This is an empty migration.") == split_script("/* ; */") == []


def test_numbers_and_lines():
    script = "-- first\n\nCREATE TABLE a (x int);\n/* a\nb */ DROP TABLE\n a;\r\n\tSELECT 1"
    assert [(s.number, s.line, s.kind) for s in split_script(script)] == [(1, 3, "CREATE TABLE"), (2, 5, "DROP TABLE"), (3, 7, "SELECT")]


@pytest.mark.parametrize(
    ("script", "line"), [("SELECT 1;\nSELECT 'a;\n", 2), ('\nSELECT "x', 2), ("/* /* */\n", 1), ("DO\n\n$x$ BEGIN; $y$", 3), ("SELECT E'\\'", 1)]
)
def test_quote_without_end(script, line):
    with pytest.raises(UnfinishedScript, match=f"begins in line {line} has no end") as caught:
        split_script(script)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("script", "named"),
    [
        ('CREATE INDEX CONCURRENTLY "bookings_idx" ON bookings(id)', "CREATE INDEX CONCURRENTLY"),
        ("create unique index\n  concurrently if not exists x on t(a)", "CREATE UNIQUE INDEX … CONCURRENTLY"),
        ("DROP INDEX CONCURRENTLY x", "DROP INDEX CONCURRENTLY"),
        ("REINDEX TABLE CONCURRENTLY t", "REINDEX TABLE CONCURRENTLY"),
        ("REINDEX (VERBOSE, CONCURRENTLY) INDEX x", "REINDEX VERBOSE CONCURRENTLY"),
        ("REINDEX DATABASE app", "REINDEX DATABASE"),
        ('ALTER TABLE "t" DETACH PARTITION "p" CONCURRENTLY', "ALTER TABLE DETACH … CONCURRENTLY"),
        ("VACUUM (ANALYZE) t", "VACUUM"),
        ("CLUSTER", "CLUSTER"),
        ("CREATE DATABASE x", "CREATE DATABASE"),
        ("ALTER SYSTEM SET work_mem = '1GB'", "ALTER SYSTEM"),
        ('ALTER DATABASE "x" SET TABLESPACE fast', "ALTER DATABASE SET"),
        ("DISCARD ALL", "DISCARD ALL"),
        ("ROLLBACK", "ROLLBACK"),
        ("ABORT", "ABORT"),
        ("ROLLBACK AND CHAIN", "ROLLBACK AND CHAIN"),
        ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION"),
        ("COMMIT PREPARED 'x'", "COMMIT PREPARED"),
        ("COPY t (a, b) FROM STDIN", "COPY"),
        ("COPY (SELECT 1) TO STDOUT", "COPY"),
    ],
)
def test_what_one_transaction_cannot_hold(script, named):
    (statement,) = split_script("\n" + script + ";")
    assert statement.obstacle
    assert not statement.is_transaction_frame
    assert describe_obstacle(statement).startswith(f"line 2: {named}")


@pytest.mark.parametrize(
    "script",
    [
        "CREATE INDEX concurrently_made ON t(a)",
        'CREATE TABLE "CONCURRENTLY" (a int)',
        "INSERT INTO notes VALUES ('CREATE INDEX CONCURRENTLY x; VACUUM; ROLLBACK')",
        "CLUSTER t USING x",
        "REINDEX TABLE t",
        "ALTER TABLE t DETACH PARTITION p",
        "ROLLBACK TO SAVEPOINT a",
        "ROLLBACK WORK TO a",
        "SAVEPOINT a",
        "ANALYZE t",
        "PREPARE q AS SELECT 1",
        "COPY t FROM '/srv/rows.csv'",
        "ALTER DATABASE x SET work_mem = '1GB'",
        "COMMENT ON TABLE t IS 'VACUUM'",
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN ROLLBACK; END $$",
    ],
)
def test_what_one_transaction_can_hold(script):
    (statement,) = split_script(script)
    assert statement.obstacle is None
    assert not statement.is_transaction_frame


@pytest.mark.parametrize("script", ["BEGIN", "begin transaction isolation level serializable", "START TRANSACTION", "COMMIT", "COMMIT WORK", "END"])
def test_frames_of_a_transaction(script):
    (statement,) = split_script(script)
    assert statement.is_transaction_frame
    assert statement.obstacle is None
