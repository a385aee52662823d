# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a release's CLI is told to connect, and what is read out of what it prints: never a row, never a password."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _prisma_cli
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

CONNECTION = {
    "login_host": "db.example.com", "login_port": 5433, "login_user": "massava", "login_password": "", "login_db": "massava",
    "login_unix_socket": "", "ssl_mode": "prefer", "ca_cert": None, "ssl_cert": None, "ssl_key": None, "connect_params": {},
    "session_role": None, "schema": "public", "lock_timeout": 1500,
}  # fmt: skip


def url(**options):
    return urlsplit(_prisma_cli.database_url({**CONNECTION, **options}))


def settings(**options):
    return {name: values[0] for name, values in parse_qs(url(**options).query).items()}


@pytest.mark.parametrize("odd", ["a b", "p@ss/word", "50%", "#?&=", "ü", "a:b"])
def test_odd_characters_arrive_as_they_are(odd):
    found = url(login_user=odd, login_password=odd, login_db=odd)
    assert (unquote(found.username), unquote(found.password), unquote(found.path[1:])) == (odd, odd, odd)
    assert (found.hostname, found.port) == ("db.example.com", 5433)


def test_where_the_server_is():
    assert url(login_host="::1").hostname == "::1"
    assert settings(login_host="", login_unix_socket="/run/postgresql")["host"] == "/run/postgresql"
    assert settings(login_host="/run/postgresql")["host"] == "/run/postgresql"
    assert "host" not in settings(login_unix_socket="/run/postgresql"), "a host that is named is meant"
    assert url(login_host="").hostname == "localhost"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("disable", {"sslmode": "disable"}), ("prefer", {"sslmode": "prefer"}), ("verify-full", {"sslmode": "require", "sslaccept": "strict"})],
)
def test_how_it_is_encrypted(mode, expected):
    found = settings(ssl_mode=mode, ca_cert="/etc/ca.pem")
    assert {name: found.get(name) for name in expected} == expected
    assert found["sslcert"] == "/etc/ca.pem"


def test_every_session_has_a_lock_timeout_and_the_role():
    assert settings(session_role="the owner")["options"] == "-c lock_timeout=1500 -c role=the\\ owner"


@pytest.mark.parametrize("option", [{"ssl_cert": "/c"}, {"ssl_key": "/k"}, {"connect_params": {"dbname": "another"}}])
def test_what_a_url_cannot_say_is_refused(option):
    with pytest.raises(UnifiedUserError, match=f"has no place for {next(iter(option))}. Set schema_deploy_engine: native"):
        url(**option)


# What engines of 6.x print; the native one cannot be run here.
NATIVE_FAILURE = """
1 migration found in prisma/migrations

Applying migration `20251201000000_later`
Error: P3018

A migration failed to apply. New migrations cannot be applied before the error is recovered from.

Migration name: 20251201000000_later

Database error code: {code}

Database error:
ERROR: {message}
DETAIL: Key (email)=(anna@example.com) already exists.

DbError {{ severity: "ERROR", code: SqlState(E{code}), message: "{message}", detail: Some("Key (email)=(anna@example.com) already exists.") }}
"""


@pytest.mark.parametrize(
    ("code", "message", "shown"),
    [
        ("23505", 'could not create unique index "u"', 'could not create unique index "u"'),
        ("22P02", 'invalid input syntax for type integer: "secret"', 'invalid input syntax for type integer: "…"'),
        ("P0001", 'no such "anna"', 'no such "…"'),
    ],
)
def test_a_failed_migration_is_told_without_its_rows(code, message, shown):
    error = _prisma_cli._failure("deploy", NATIVE_FAILURE.format(code=code, message=message), 1)
    assert str(error).startswith(f"Failed to deploy: a migration failed (Prisma's P3018, 20251201000000_later, {shown}, {code}). ")
    assert "anna@example.com" not in str(error)
    assert error.details == {"code": "P3018", "failed_migration": "20251201000000_later"}


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        ("Error: P1001: Can't reach database server at `db:5432`", "P1001", "does not reach the database server"),
        ("Error: P1000: Authentication failed against database server", "P1000", "refused the login"),
        ("Error: P1002\n\nTimed out trying to acquire a postgres advisory lock (SELECT pg_advisory_lock(72707369))", "P1002", "Prisma's lock"),
        ("Error: P3009\n\nThe `20251201000000_later` migration started at 2026 failed", "P3009", "began earlier and did not finish"),
        ("Error: P3005\n\nThe database schema is not empty.", "P3005", "tables but no record"),
        ("RuntimeError: unreachable\n    at wasm", "", "ended with a panic"),
        ("something else", "", "ended with status 1"),
    ],
)
def test_each_code_has_its_explanation(output, code, words):
    error = _prisma_cli._failure("deploy", output, 1)
    assert words in str(error) and error.details["code"] == code and error.next_step


def test_a_command_that_does_not_end_is_ended(tmp_path):
    program = tmp_path / "node_modules" / ".bin" / "prisma"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nsleep 60 &\nwait\n")
    program.chmod(0o755)
    (tmp_path / "prisma").mkdir()
    (tmp_path / "prisma" / "schema.prisma").touch()
    with pytest.raises(UnifiedUserError, match=r"it did not end within 0\.3 s and was ended"):
        _prisma_cli.Release(str(tmp_path), timeout=0.3).run("postgresql://unused.invalid/unused", "migrate", "deploy")
