# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The reference application switched and switched back under people's hands: none of them notices, and an owner sees the same all the time."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options

from tests.app import reference_data
from tests.app.application_host import ApplicationHost, People
from tests.module_process import connection_options
from tests.playbook_process import ROOT, run_playbook
from tests.switchover.browser import person_at

pytestmark = pytest.mark.one_major
#: Where the pictures of docs/ come from: set this to docs/images to take them anew.
PICTURES = os.environ.get("UNIFIED_USER_PICTURES")
OWNER = (reference_data.owner_email(1), reference_data.OWNER_PASSWORD)
BACK = ("-e", "rollback_mode=application", "-e", "rollback_confirmed=application")


@dataclass
class Journey:
    """What became of it.

    Attributes:
        people: those who signed in and booked all the while.
        served: the release that served at each stop.
        kept: the bookings that the owner saw at each stop, with the session he had before.
        anew: those that he saw after he had signed in again.
        found: how many bookings are in each table at the end.
    """

    people: People
    served: list[str] = field(default_factory=list)
    kept: list[list[tuple[str, str]]] = field(default_factory=list)
    anew: list[list[tuple[str, str]]] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=dict)


def play(name: str, folder: Path, variables: dict, *arguments: str) -> None:
    """Run a playbook on this machine, which is the application's and the database's host."""
    path = folder / "hosts.json"
    groups = {group: {"hosts": {"localhost": variables}} for group in ("app", "database")}
    path.write_text(json.dumps({"all": {"children": groups}}))
    path.chmod(0o600)
    done = run_playbook(ROOT / "playbooks" / f"{name}.yml", path, *arguments, timeout=400)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def journey(cluster, templates, tmp_path_factory):
    """From the legacy release to the unified one and back, with people and a browser."""
    folder = tmp_path_factory.mktemp("journey")
    with contextlib.ExitStack() as stack:
        name = stack.enter_context(templates.database("reference"))
        with contextlib.closing(Database(cluster.connect(name))) as database:
            AtomicCopy(database, Options()).run()
            Sync(database, SyncOptions()).install("both")
        host = ApplicationHost(folder, cluster, name)
        stack.callback(host.end)
        connection = {key.replace("login_", "unified_user_login_", 1): value for key, value in connection_options(cluster, name).items()}

        def variables(**release) -> dict:
            local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **connection}
            return {**local, **host.variables(**{**release, "app_switchover_auth_check": False})}

        play("switch", folder, variables(**host.first_release()))
        person = stack.enter_context(person_at(host.stand.url, folder / "profile"))
        journey = Journey(People(host))

        def stop(picture: str) -> None:
            journey.served.append(host.serving())
            if journey.anew:
                journey.kept.append(person.bookings())
            person.sign_in(*OWNER)
            journey.anew.append(person.bookings())
            person.photograph(Path(PICTURES or folder) / f"{picture}.png")

        stop("before-the-switch")
        with journey.people:
            play("switch", folder, variables(**host.next_release()))
            stop("after-the-switch")
            play("rollback", folder, variables(), *BACK)
            stop("after-switching-back")
        with contextlib.closing(cluster.connect(name)) as connection_of_test:
            journey.found = journey.people.found(connection_of_test)
        yield journey


def test_no_request_failed_and_every_booking_is_found(journey):
    people = journey.people
    assert journey.served == ["legacy", "unified", "legacy"]
    assert not people.failed and people.requests > 50 and all(people.sign_ins.values()), (people.failed, people.sign_ins)
    assert journey.found == {"bookings": len(people.booked), "new_bookings": len(people.booked)} and people.booked


def test_an_owner_sees_the_same_bookings_in_a_browser(journey):
    """Whatever people booked with him meanwhile comes on top."""
    seen = [[row for row in rows if row[0] not in journey.people.booked] for rows in (*journey.anew, *journey.kept)]
    assert len(seen) == 5 and len(seen[0]) > 2
    assert all(rows == seen[0] for rows in seen)
