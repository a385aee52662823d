# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Host by host: the first as canary, and what fails on the second leaves the first as it is."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.app import application
from tests.switchover.small_host import PLAYBOOK, SERVER, run_on, serving_hosts, small_release

pytestmark = pytest.mark.one_major

FAIL = "- name: Fail once it serves\n  ansible.builtin.fail:\n    msg: the operator's own check says no\n"
#: It answers as long as it is a candidate, and dies a while after it began to serve.
DYING = SERVER + '\nif (process.env.name === "first") setTimeout(() => process.exit(1), 6000);\n'


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with serving_hosts(tmp_path_factory.mktemp("rolling"), ("first", "second")) as hosts:
        yield hosts


def _release(hosts, name: str, server: str = SERVER) -> dict:
    return {"app_switchover_release": name, "app_switchover_directory": str(small_release(hosts[0].folder.parent / name, server)), "playbook": PLAYBOOK}


def test_the_second_fails_and_is_switched_later(hosts, tmp_path):
    first, second = hosts
    (tmp_path / "fails.yml").write_text(FAIL)
    failing = {"second": {"app_switchover_hooks": {"after_switch": [str(tmp_path / "fails.yml")]}}}
    started = time.monotonic()
    status, words = run_on(hosts, each=failing, app_switchover_canary_seconds=3, **_release(hosts, "new"))
    assert status != 0 and first.serving() == "new" and second.serving() == "old"
    assert (first.linked(), first.linked("previous"), second.linked()) == ("new", "old", "old") and not (second.root / "previous").is_symlink()
    assert 'Failed to switch second to release new, in step "Fail once it serves": the operator\'s own check says no Release old serves.' in words
    assert "Release new serves on first and stays there; to take it back run `ansible-playbook rollback.yml -e rollback_mode=application`." in words
    assert "run `ansible-playbook switch.yml -e app_switchover_release=new` again." in words
    # The first was watched before the second began.
    assert time.monotonic() - started > 3 and words.index("Watch it while it serves as the only one") < words.index("Failed to switch second")
    status, words = run_on(hosts, **_release(hosts, "new"))
    assert status == 0 and first.serving() == second.serving() == "new" and re.search(r"first : ok=\d+ changed=0", words), words


def test_the_canary_dies(hosts):
    first, second = hosts
    before = first.serving(), second.serving(), (first.root / "previous").is_symlink() and first.linked("previous")
    status, words = run_on(hosts, app_switchover_canary_seconds=8, **_release(hosts, "dying", DYING))
    # Which of the two it is depends on the moment: pm2 starts it again at once.
    assert re.search('Failed to switch first to release dying, in step "See that it(s processes are still the same| goes on answering)"', words), words
    after = first.serving(), second.serving(), (first.root / "previous").is_symlink() and first.linked("previous")
    assert status != 0 and after == before and not (second.root / "releases" / "dying").exists()


def test_the_second_cannot_be_reached(hosts, tmp_path):
    """It is there when all hosts are looked at, and gone when its turn comes."""
    first, second = hosts
    gone = tmp_path / "gone"
    (tmp_path / "cut.yml").write_text(f"- name: Cut the second off\n  ansible.builtin.file:\n    path: {gone}\n    state: touch\n    mode: '0644'\n")
    cut = {
        "first": {"app_switchover_hooks": {"after_switch": [str(tmp_path / "cut.yml")]}},
        "second": {
            "ansible_connection": "{{ 'ssh' if '" + str(gone) + "' is exists else 'local' }}", "ansible_host": "127.0.0.1",
            "ansible_port": application.free_port(), "ansible_ssh_retries": 0,
        },
    }  # fmt: skip
    before = second.serving()
    status, words = run_on(hosts, each=cut, **_release(hosts, "newer"))
    assert status != 0 and first.serving() == "newer" and second.serving() == second.linked() == before
    assert "Failed to switch second: it cannot be reached, so nothing was done there. Release newer serves on first and stays there" in words
    assert not Path(second.root / "releases" / "newer").exists()
