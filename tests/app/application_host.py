"""A host on which the reference application is switched for real: this machine, with a pm2 of its own, and people who never stop."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_browser import BrowserError, Network
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_site import CaseFailed, Site

from tests.app import application, prisma_cli, reference_data

BASE_PATH = "/termine"
#: What the releases call the way in of owners; the provider that a release offers tells which one answered.
PROVIDERS = ("studio-credentials", "credentials")
#: Owners whose password is known.
_OWNERS = (1, 3, 4)
#: Each owner signs in again after that many seconds: the application allows 30 times within 15 minutes to a process.
_SIGN_IN_SECONDS = 6
_ATTEMPTS = 15
_OF_THE_PROCESS = ("PATH", "HOME", "PORT", "NODE_ENV", "CI", "NO_COLOR")


class ApplicationHost:
    """A host of the application.

    Args:
        folder: for its releases, pm2 and files; short enough for a socket's path.
        cluster, database: the database server and the name of the database.
        settings: environment variables of the application, over the usual ones.
    """

    def __init__(self, folder: Path, cluster, database: str, **settings: str) -> None:
        self.root, self.folder, self.pm2_home = folder / "srv", folder, folder / "pm2"
        self.stand, self.candidate_port = application.Stand(BASE_PATH), application.free_port()
        self.pm2 = ["node", str(prisma_cli.install() / "node_modules" / "pm2" / "bin" / "pm2")]
        environment = self.stand.environment(cluster, database, BCRYPT_COST="8", **settings)
        self.environment = {name: value for name, value in environment.items() if name not in _OF_THE_PROCESS}
        # Its daemon belongs to nobody: should this process be killed, the end of the pipe is what ends it.
        self._watch = subprocess.Popen(
            ["sh", "-c", 'read -r nothing; exec "$@" >/dev/null 2>&1', "sh", *self.pm2, "kill"],
            stdin=subprocess.PIPE, env={**os.environ, "PM2_HOME": str(self.pm2_home)}, start_new_session=True,
        )  # fmt: skip

    def variables(self, **changes: Any) -> dict[str, Any]:
        """Return what an operator's inventory says of it."""
        return {
            "app_switchover_root": str(self.root), "app_switchover_name": "termine", "app_switchover_environment": self.environment,
            "app_switchover_port": self.stand.port, "app_switchover_candidate_port": self.candidate_port, "app_switchover_pm2": self.pm2,
            "app_switchover_pm2_home": str(self.pm2_home), "app_switchover_health_path": BASE_PATH + "/api/health", "app_switchover_watch_seconds": 1,
            "auth_check_url": self.stand.url, "auth_check_environment": "test", "auth_check_bcrypt_cost": 8,
            "auth_check_mail": {"source": "smtp", "host": "127.0.0.1", "port": self.stand.smtp_port}, **changes,
        }  # fmt: skip

    def first_release(self) -> dict[str, Any]:
        """Return where the legacy release comes from: a directory that was built before."""
        return {
            "app_switchover_release": "legacy", "app_switchover_first": True, "app_switchover_source": "directory", "app_switchover_commands": [],
            "app_switchover_directory": str(application.build("legacy", BASE_PATH)), "app_switchover_auth_check": False,
        }  # fmt: skip

    def next_release(self) -> dict[str, Any]:
        """Return where the unified release comes from: the legacy source out of a repository, edited as the guide says, and built.

        What is built from the same source was built before, so it is only compared and taken.
        """
        built, repository = application.build("unified", BASE_PATH), self.folder / "repository"
        application.make_source(repository, "legacy")
        for command in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "-m", "x"]):
            subprocess.run(["git", *command], cwd=repository, check=True)
        return {
            "app_switchover_release": "unified", "app_switchover_source": "git", "app_switchover_git_repository": str(repository),
            "app_switchover_git_version": "HEAD",
            "app_switchover_import_rewrites": [{"files": list(application.IMPORTS), "before": application.IMPORT_BEFORE, "after": application.IMPORT_AFTER}],
            "app_switchover_route_moves": [{"source": f"{route}-unified", "target": route} for route in application.ROUTES],
            "app_switchover_commands": [
                ["diff", "-r", str(built / "app"), "app"], ["diff", "-r", str(built / "lib"), "lib"],
                ["ln", "-s", str(prisma_cli.install() / "node_modules"), "node_modules"], ["cp", "-r", str(built / ".next"), ".next"],
            ],
        }  # fmt: skip

    def serving(self) -> str:
        """Return the name of the release that answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.stand.port}{BASE_PATH}/api/health", timeout=10) as answer:
            return json.load(answer)["release"]

    def end(self) -> None:
        """End pm2 and all it runs."""
        self._watch.communicate(timeout=60)


class People:
    """People at their work all the time: owners who are signed in, and in again, and guests who book. A context manager.

    Every request must be answered as it should, whichever release answers, and who is signed in must stay so.

    Args:
        host: where.
        number: how many owners, each with guests, do so at once.

    Attributes:
        requests: how many were answered.
        sign_ins: how many times an owner was let in, by the way in.
        failed: what was not answered as it should.
        booked: the ids of the bookings that were confirmed to guests.
    """

    def __init__(self, host: ApplicationHost, number: int = 2) -> None:
        self._url, self._stop = host.stand.url, threading.Event()
        self._threads = [threading.Thread(target=self._act, args=(person,), daemon=True) for person in range(number)]
        self._lock = threading.Lock()
        self.requests, self.sign_ins, self.failed, self.booked = 0, dict.fromkeys(PROVIDERS, 0), [], []

    def __enter__(self) -> People:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _act(self, person: int) -> None:
        site, email = self._site(f"2001:db8:1::{person}"), reference_data.owner_email(_OWNERS[person])
        browser, entered, count, studio = None, 0.0, 0, ""
        while not self._stop.wait(0.1):
            count += 1
            try:
                if browser is None or time.monotonic() - entered > _SIGN_IN_SECONDS:
                    browser, entered = self._sign_in(site, email), time.monotonic()
                user = self._answered(site.user(browser))
                assert user and user["email"] == email, "an owner's session is gone"
                # Each guest is somebody else to the rate limit.
                guest = self._site(f"2001:db8:2::{person}:{count:x}")
                if not studio:
                    studio = guest.browser().get(guest.at("studios")).json()["studios"][0]["id"]
                self._book(guest, studio, f"gast.{person}.{count}.{time.time_ns()}@mail.example")
            except (AssertionError, BrowserError, CaseFailed) as error:
                browser = None
                with self._lock:
                    self.failed.append(f"{type(error).__name__} {error}")

    def _site(self, address: str) -> Site:
        return Site(self._url, Network("/".join(self._url.split("/")[:3]), headers=(("X-Forwarded-For", address),)))

    def _answered(self, value, requests: int = 1):
        with self._lock:
            self.requests += requests
        return value

    def _sign_in(self, site: Site, email: str):
        """Sign in and return the browser. While one release takes over from the other, its way in may be gone again: then once more."""
        for _again in range(_ATTEMPTS):
            browser = site.browser()
            offered = self._answered(browser.get(site.auth("providers"))).json()
            provider = next(name for name in PROVIDERS if name in offered)
            attempt = self._answered(site.sign_in(browser, provider, {"email": email, "password": reference_data.OWNER_PASSWORD}), 3)
            assert attempt.answer.status < 500, f"sign-in: {attempt.answer.status}"
            if attempt.user:
                with self._lock:
                    self.sign_ins[provider] += 1
                return browser
            time.sleep(0.2)
        raise AssertionError(f"an owner was not let in by {provider}: {attempt.error}")

    def _book(self, site: Site, studio: str, email: str) -> None:
        browser = site.browser()
        health = self._answered(browser.get(site.at("health")))
        assert health.status == 200, f"health: {health.status}"
        answer = self._answered(browser.post_json(site.at("bookings"), {
            "studioId": studio, "customerName": "Gast", "customerEmail": email, "customerPhone": "0", "preferredDate": "2091-01-02", "preferredTime": "9",
        }))  # fmt: skip
        assert answer.status == 201, f"booking: {answer.status}"
        with self._lock:
            self.booked.append(answer.json()["booking"]["id"])

    def found(self, connection) -> dict[str, int]:
        """Return how many of the bookings are in each table.

        Args:
            connection: an open psycopg2 connection on the database.
        """
        found = {}
        with connection.cursor() as cursor:
            for table in ("bookings", "new_bookings"):
                cursor.execute(f"SELECT count(*) FROM public.{table} WHERE id = ANY (%s)", (self.booked,))
                found[table] = cursor.fetchone()[0]
        return found
