# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The reference application, built and running on a migrated database, with a mail service and a stand-in for Google beside it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _auth_check_cases, _auth_check_people
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check import Report, Settings, check_sign_in
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options

from tests.app import application
from tests.module_process import connection_options
from tests.seeded_secrets import register_secrets

BASE_PATH = "/termine"
#: Hashing at full cost is what most of the time would go into.
CHEAP = 8

_TABLES = """
SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname IN ('public', 'unified_user_journal') ORDER BY 1
"""


@dataclass
class Site:
    """A place where releases run: a database, ports, secrets, an issuer, and the unified release, which can be broken and mended.

    Attributes:
        cluster, database: the server, and the migrated database's name.
        stand: ports and secrets.
        release: the directory of the unified release.
        folder: for logs, and for the file that says what is broken.
    """

    cluster: Any
    database: str
    stand: application.Stand
    release: Path
    folder: Path

    @contextlib.contextmanager
    def session(self):
        """A session on the database."""
        with contextlib.closing(Database(self.cluster.connect(self.database))) as database:
            yield database

    @contextlib.contextmanager
    def serving(self):
        """Run the unified release at its place."""
        self.switch.write_text("")
        environment = {"BROKEN_FILE": str(self.switch), "BCRYPT_COST": str(CHEAP)}
        with self.stand.application(self.release, self.cluster, self.database, self.folder / "application.log", **environment):
            yield

    @property
    def switch(self) -> Path:
        """The file that names the mistake the release makes."""
        return self.folder / "broken"

    @contextlib.contextmanager
    def broken(self, breakage: str):
        """Let the release make a mistake."""
        self.switch.write_text(breakage)
        try:
            yield
        finally:
            self.switch.write_text("")

    @contextlib.contextmanager
    def beside(self, name: str, release: Path | None = None, **environment: str):
        """Run a release on another port, with other settings, and yield its URL and its log. Google does not know that port."""
        port, log = application.free_port(), self.folder / f"{name}.log"
        origin = f"http://localhost:{port}"
        environment = {"AUTH_URL": origin, "BCRYPT_COST": str(CHEAP), **environment}
        with self.stand.application(release or self.release, self.cluster, self.database, log, port, **environment):
            yield origin + BASE_PATH, log

    def options(self, **changes) -> dict[str, Any]:
        """What the module is told, without the connection."""
        stand = self.stand
        mail = {"source": "smtp", "host": "127.0.0.1", "port": stand.smtp_port, "timeout": 10}
        return {"url": stand.url, "google_client_id": stand.client_id, "mail": mail, "bcrypt_cost": CHEAP, **changes}

    def connection(self) -> dict[str, Any]:
        """The module's connection options."""
        return connection_options(self.cluster, self.database)

    def check(self, **changes) -> Report:
        """Check sign-in within this process; what was found goes to the test's output, where secrets are searched for."""
        with self.session() as database:
            report = check_sign_in(Settings(**self.options(**changes)), database)
        print(report.as_dict())
        return report

    def contents(self) -> dict[str, str]:
        """A sum of every table's rows, to see that a check left nothing."""
        with self.session() as database:
            tables = [row["name"] for row in database.rows(_TABLES)]
            return {
                name: database.value(f"SELECT count(*) || ' ' || coalesce(md5(string_agg(t::text, ' ' ORDER BY t::text)), '') FROM {name} AS t")
                for name in tables
            }


@pytest.fixture(scope="session")
def make_site(cluster, templates, tmp_path_factory):
    """Makes places with a freshly migrated database each; they last until the session's end."""
    release = application.build("unified", BASE_PATH)
    with contextlib.ExitStack() as stack:

        def make() -> Site:
            name = stack.enter_context(templates.database("reference"))
            folder = tmp_path_factory.mktemp("site")
            site = Site(cluster, name, application.Stand(BASE_PATH), release, folder)
            with site.session() as database:
                AtomicCopy(database, Options()).run()
            stack.enter_context(site.stand.issuer(folder / "issuer.log"))
            stack.enter_context(site.serving())
            return site

        yield make


@pytest.fixture(scope="session")
def site(make_site):
    """One place for all tests: a check leaves it as it was, and each test insists on that."""
    return make_site()


@pytest.fixture(autouse=True)
def registered_passwords(monkeypatch):
    """Passwords of test accounts that are made within this process are secrets like any other."""
    from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_password import new_password

    def registered() -> str:
        password = new_password()
        register_secrets([password])
        return password

    for module in (_auth_check_cases, _auth_check_people):
        monkeypatch.setattr(module, "new_password", registered)
