# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The check of sign-in against the running reference application: as a library, as a module, as a role; and that it leaves nothing."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import threading
import time

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check import NAMES, Settings, check_sign_in
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import verify_database

from tests.app import application
from tests.application.conftest import BASE_PATH, CHEAP
from tests.module_process import ModuleProcess, run_module
from tests.playbook_process import ROOT, changed, inventory, run_playbook

pytestmark = pytest.mark.one_major

MARKED = "SELECT count(*) FROM users WHERE email LIKE 'auth-check-%'"


def passed(report) -> None:
    """Insist that every case was tried and went as it should."""
    assert not report.failed, {case.name: case.detail for case in report.failed}
    assert [case.name for case in report.cases if case.result == "passed"] == list(NAMES)


def test_everything_passes_on_a_good_application(site):
    before = site.contents()
    report = site.check()
    passed(report)
    # Once more, right after it: rate limits and what the first run did are not in the way.
    passed(site.check())
    assert report.removed_rows > 50 and site.contents() == before
    assert all(case.duration_ms >= 0 and case.title and case.kind for case in report.cases)


def test_under_sync_the_link_read_in_the_database(make_site):
    site = make_site()
    with site.beside("without-mail", SMTP_URL="", MAIL_MODE="log") as (url, _log), site.session() as database:
        for direction in ("forward", "both", "reverse"):
            Sync(database, SyncOptions()).install(direction)
            before = site.contents()
            passed(site.check(url=url, google="redirect", mail={"source": "database"}))
            assert site.contents() == before, direction
        verify_database(database).require()


def test_a_link_read_in_the_log_of_development_mode(site):
    with site.beside("development", SMTP_URL="", MAIL_MODE="log") as (url, log):
        passed(site.check(url=url, google="redirect", mail={"source": "log", "path": str(log)}))


def test_a_session_of_the_release_before(site):
    """Both releases run side by side, as they do while hosts are switched."""
    legacy = application.build("legacy", BASE_PATH)
    before = site.contents()
    with site.beside("legacy", legacy) as (url, _log):
        report = site.check(previous_url=url, previous_providers={"owner": "studio-credentials", "customer": "customer-credentials"})
    passed(report)
    assert site.contents() == before


def test_a_session_whose_user_is_no_row_of_users(cluster, templates, tmp_path):
    """Signed in through Google at a release whose adapter has the legacy tables: the guide's adapter mismatch."""
    stand = application.Stand(BASE_PATH)
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(templates.database("reference"))
        database = stack.enter_context(contextlib.closing(Database(cluster.connect(name))))
        AtomicCopy(database, Options()).run()
        before = database.value("SELECT count(*) FROM public.studio_owners")
        stack.enter_context(stand.issuer(tmp_path / "issuer.log"))
        stack.enter_context(stand.application(application.build("legacy", BASE_PATH), cluster, name, tmp_path / "legacy.log"))
        others = {case: "only Google is tried" for case in NAMES if case != "google_owner"}
        settings = Settings(stand.url, google="test_issuer", mail={"source": "database"}, bcrypt_cost=CHEAP, switched_off=others)
        report = check_sign_in(settings, database)
        assert [case.name for case in report.failed] == ["google_owner"]
        assert report.failed[0].detail.startswith("oauth_adapter_mismatch: the session's user is not a row of users")
        assert database.value("SELECT count(*) FROM public.studio_owners") == before


def test_a_candidate_behind_the_public_address(site):
    """The candidate listens on a spare port and believes in its public URL, with secure cookies."""
    public = "https://www.massage.example"
    with site.beside("candidate", AUTH_URL=public) as (url, _log):
        report = site.check(url=public + BASE_PATH, connect_to=url.replace("localhost", "127.0.0.1").rpartition("/")[0], google="redirect")
    passed(report)
    assert "only the redirect" in next(case.detail for case in report.cases if case.name == "google_owner")


def test_the_module_names_what_failed_and_leaves_nothing(site):
    before = site.contents()
    options = {**site.connection(), **site.options()}
    with site.broken("magic-link-takes-no-token"):
        failed = run_module("auth_check", options)
        told = run_module("auth_check", {**options, "fail_on_failure": False, "switched_off": {"letter_case": "known, TERMINE-7"}})
    assert failed["failed"] and "magic_link_without_token (an e-mail without a token, given to the provider, signed in)" in failed["msg"]
    assert not told.get("failed") and not told["passed"] and told["counts"] == {"passed": 27, "failed": 5, "skipped": 1} and not told["changed"]
    assert next(case for case in told["cases"] if case["name"] == "letter_case")["detail"] == "switched off: known, TERMINE-7"
    assert site.contents() == before


def test_check_mode_and_read_only_write_nothing(site):
    options = {**site.connection(), **site.options()}
    before = site.contents()
    with site.session() as database:
        for more in ({"_ansible_check_mode": True}, {"read_only": True}):
            done = run_module("auth_check", {**options, **more})
            assert done["passed"] and done["removed_rows"] == 0
            names = [case["name"] for case in done["cases"] if case["result"] == "passed"]
            assert names == ["health", "google_redirect", "anonymous", "csrf_missing", "open_redirect"]
            assert database.value(MARKED) == 0
    assert site.contents() == before


def test_an_endpoint_that_is_not_there(site):
    report = site.check(paths={"register_owner": "/{locale}/api/nowhere"})
    failed = {case.name: case.detail for case in report.failed}
    assert set(failed) == {"registration_owner", "letter_case"}
    assert failed["registration_owner"] == f"there is no endpoint at POST {BASE_PATH}/de/api/nowhere (status 404)"


def test_an_application_that_answers_with_something_else(site):
    """Whatever a page in between says, no case ends the check, and what it says is not repeated."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Set-Cookie", "=; nothing")
            self.send_header("Location", "http://[")
            self.end_headers()
            self.wfile.write(b'[{"url": 7, "csrfToken": ["not-shown"]}, null]')

        do_POST = do_GET

        def log_message(self, *_arguments):
            pass

    before = site.contents()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        report = site.check(url=f"http://localhost:{server.server_port}", mail={"source": "database", "timeout": 0.1})
    finally:
        server.shutdown()
        server.server_close()
    assert {"password_owner", "magic_link", "guest_booking", "csrf_missing", "wrong_password"} <= {case.name for case in report.failed}
    assert "not-shown" not in str(report.as_dict()) and len(report.cases) == len(NAMES)
    assert site.contents() == before


def test_nobody_answers(site):
    before = site.contents()
    report = site.check(url=f"http://localhost:{application.free_port()}", mail={"source": "database"})
    assert len(report.failed) == len(NAMES) and "gave no answer (Connection refused)" in report.failed[0].detail
    assert site.contents() == before


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"switched_off": {"no_such_case": "x"}}, "switched_off names no_such_case, which is not known"),
        ({"switched_off": {"letter_case": " "}}, "letter_case is switched off without a reason"),
        ({"paths": {"nowhere": "/"}}, "paths names nowhere"),
        ({"url": "www.massage.example"}, "url is no address of a site"),
        ({"mail": {"source": "log"}}, "mail has no path"),
    ],
)
def test_settings_that_cannot_be_meant(site, settings, cause):
    with pytest.raises(UnifiedUserError, match=cause):
        site.check(**settings)


def _under_way(site) -> ModuleProcess:
    """The module in the middle of its cases."""
    process = ModuleProcess("auth_check", {**site.connection(), **site.options()})
    with site.session() as database:
        deadline = time.monotonic() + 30
        while not database.value("SELECT count(*) FROM magic_link_tokens WHERE email LIKE 'auth-check-%'"):
            assert time.monotonic() < deadline and process.process.poll() is None
            time.sleep(0.02)
    return process


def test_ended_or_killed_in_the_middle(site):
    before = site.contents()
    with site.session() as database:
        ended = _under_way(site)
        os.kill(ended.process.pid, signal.SIGTERM)
        assert "it was ended from outside" in ended.result(30)["msg"]
        assert site.contents() == before
        _under_way(site).kill()
        assert database.value(MARKED) >= 7
        # One that may still be going on is let alone.
        assert site.check().leftover_runs == 0 and database.value(MARKED) >= 7
        database.execute("UPDATE users SET \"createdAt\" = \"createdAt\" - interval '2 hours' WHERE email LIKE 'auth-check-%'")
        report = site.check()
        assert report.leftover_runs == 1
        passed(report)
    assert site.contents() == before


#: Writes an entry about somebody when the transaction that removes him commits: too late for it, as a request under way does.
LATE = """
CREATE FUNCTION write_late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO audit_logs (id, action, resource, "resourceId", "userAgent") VALUES (gen_random_uuid()::text, 'LATE', 'user', OLD.id, OLD.email);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER write_late AFTER DELETE ON users DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION write_late();
"""


def test_what_is_written_during_the_removal(site):
    before = site.contents()
    with site.session() as database, contextlib.ExitStack() as stack:
        database.execute(LATE)
        stack.callback(database.execute, "DROP FUNCTION write_late() CASCADE")
        ended = _under_way(site)
        os.kill(ended.process.pid, signal.SIGTERM)
        assert "it was ended from outside" in ended.result(30)["msg"]
        assert site.contents() == before
        # Every request was answered: what is written then is nothing to wait for.
        with pytest.raises(UnifiedUserError, match=r"still in audit_logs\. Something wrote them meanwhile"):
            site.check()
        assert database.execute("DELETE FROM audit_logs WHERE action = 'LATE'") > 0
    assert site.contents() == before


def test_the_playbook(site, tmp_path):
    before = site.contents()
    options = site.options()
    connection = {name.replace("login_", "unified_user_login_", 1): value for name, value in site.connection().items()}
    variables = {
        **connection, "auth_check_url": options["url"], "auth_check_google": "test_issuer", "auth_check_environment": "staging",
        "auth_check_google_client_id": options["google_client_id"], "auth_check_mail": options["mail"], "auth_check_bcrypt_cost": CHEAP,
    }  # fmt: skip
    hosts, playbook = inventory(tmp_path, variables), ROOT / "playbooks" / "auth_check.yml"
    done = run_playbook(playbook, hosts)
    assert done.returncode == 0 and changed(done) == 0, done.stdout
    assert "magic_link_without_token" in done.stdout and "33 passed, 0 failed, 0 skipped." in done.stdout
    refused = run_playbook(playbook, hosts, "-e", "auth_check_environment=production")
    assert refused.returncode != 0 and "this is production, where no test accounts are made" in " ".join(refused.stdout.split())
    looked = run_playbook(playbook, hosts, "-e", "auth_check_environment=production", "-e", "auth_check_production=true")
    assert looked.returncode == 0 and "5 passed, 0 failed, 28 skipped." in looked.stdout
    failed = run_playbook(playbook, hosts, "-e", '{"auth_check_paths": {"booking": "/{locale}/nowhere/{id}"}}')
    words = " ".join(failed.stdout.split())
    assert failed.returncode != 0 and "foreign_booking (GET /termine/de/nowhere/" in words and "auth_check_switched_off" in words
    assert site.contents() == before
