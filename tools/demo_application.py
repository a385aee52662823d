"""The demo's second part: the reference application under pm2, switched to the unified model and back while people use it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
for path in (ROOT, ROOT / ".collections"):
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))

from tests.app.application_host import ApplicationHost, People  # noqa: E402


class Switching:
    """The application on a migrated database.

    Args:
        folder: for all that it needs; what an earlier run left there is removed.
        cluster, database: the server, and the migrated database.
        role, password: whom the application is to the database.
        play: runs a playbook of the checkout with options and returns its status.
        say: tells a line.
    """

    def __init__(self, folder: Path, cluster, database: str, role: str, password: str, play, say) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        self._folder, self._cluster, self._database, self._role, self._play, self._say = folder, cluster, database, role, play, say
        url = f"postgresql://{role}:{quote(password)}@{cluster.tcp_host}:{cluster.port}/{quote(database)}"
        self._host = ApplicationHost(folder, cluster, database, DATABASE_URL=url)

    def run(self, *options: str) -> int:
        """Switch there and back; returns 0 when every request was answered and every booking is found.

        Args:
            options: further ones for ansible-playbook.
        """
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.callback(self._host.end)
            stack.enter_context(self._host.stand.issuer(self._folder / "issuer.log"))
            self._say("building the reference application, legacy and unified, unless that is done")
            first, following = self._host.first_release(), self._host.next_release()
            # Also where it was on already: whatever it was.
            status = self._play("sync", *self._variables({}), "-e", "sync_direction=both", *options)
            status = status or self._play("switch", *self._variables(first), *options)
            if status:
                return status
            self._say(f"release {self._host.serving()} serves at {self._host.stand.url} in two processes; now people sign in and book all the time")
            with People(self._host) as people:
                status = self._play("switch", *self._variables(following), *options)
                served = [self._host.serving()]
                status = status or self._play(
                    "rollback", *self._variables({}), "-e", "rollback_mode=application", "-e", "rollback_confirmed=application", *options
                )
                served.append(self._host.serving())
        status = status or self._judge(people, served)
        self._say(f"the switch there and back took {time.monotonic() - started:.0f} s, building included")
        return status

    def _variables(self, release: dict) -> tuple[str, str]:
        """Write what the inventory lacks; it holds secrets, so it is closed to others."""
        path = self._folder / "application.json"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump({"unified_user_login_db": self._database, **self._host.variables(**release)}, file)
        return "-e", f"@{path}"

    def _judge(self, people: People, served: list[str]) -> int:
        with contextlib.closing(self._cluster.connect(self._database, user=self._role)) as connection:
            found = people.found(connection)
        ways = ", ".join(f"{count} times by {way}" for way, count in people.sign_ins.items())
        self._say(f"{served[0]} served, then {served[1]} again")
        self._say(f"people had {people.requests} requests answered, {len(people.failed)} failed; owners signed in {ways}")
        self._say(
            f"they made {len(people.booked)} bookings; {found['bookings']} are on the legacy side, {found['new_bookings']} on the unified side"
        )
        for failure in people.failed[:5]:
            self._say(f"failed: {failure}")
        fine = not people.failed and all(people.sign_ins.values()) and set(found.values()) == {len(people.booked)} and served == ["unified", "legacy"]
        return 0 if fine else 1
