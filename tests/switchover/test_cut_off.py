# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A host whose connection dies in the middle of its switch: the next hosts stay as they are, and the same command again ends well."""

from __future__ import annotations

import pytest

from tests.app import application
from tests.switchover.small_host import PLAYBOOK, SERVER, run_on, serving_hosts, small_release

pytestmark = pytest.mark.one_major


def _server(folder) -> str:
    """A release that says when it runs: it makes a file that has its process's name in pm2."""
    return SERVER + f'\nrequire("fs").writeFileSync("{folder}/runs-" + process.env.name, "");\n'


def _cut_once(condition: str) -> dict:
    """The connection of a host that is there until something is so, and then is not."""
    return {
        "ansible_connection": "{{ 'ssh' if " + condition + " else 'local' }}", "ansible_host": "127.0.0.1", "ansible_port": application.free_port(),
        "ansible_ssh_retries": 0,
    }  # fmt: skip


def test_the_same_command_again(tmp_path):
    """Cut off while the candidate runs, when the link has been set, and when the new release's processes serve."""
    with serving_hosts(tmp_path, ("linked", "other", "candidate", "serving")) as hosts:
        linked, other, candidate, serving = hosts
        release = {"app_switchover_release": "new", "app_switchover_directory": str(small_release(tmp_path / "new", _server(tmp_path)))}
        has_link = f"lookup('ansible.builtin.pipe', 'readlink {linked.root}/current') == 'releases/new'"

        status, words = run_on([linked, other], playbook=PLAYBOOK, each={"linked": _cut_once(has_link)}, **release)
        assert status != 0 and "unreachable=1" in words and (linked.linked(), linked.linked("previous"), linked.serving()) == ("new", "old", "old"), words
        assert other.serving() == other.linked() == "old" and sorted(path.name for path in other.root.iterdir()) == ["current", "releases", "shared"]

        at_once = {"candidate": _cut_once(f"'{tmp_path}/runs-candidate-candidate' is exists"), "serving": _cut_once(f"'{tmp_path}/runs-serving' is exists")}
        status, words = run_on([candidate, serving], each=at_once, **release)
        assert status != 0 and words.count("unreachable=1") == 2, words
        assert (candidate.linked(), candidate.serving(), serving.linked()) == ("old", "old", "new")
        assert "candidate-candidate" in [process["name"] for process in candidate.processes()]

        status, words = run_on(hosts, **release)
        assert status == 0, words
        for host in hosts:
            assert (host.serving(), host.linked(), host.linked("previous")) == ("new", "new", "old") and not (host.root / ".switchover").is_symlink()
        assert sorted(process["name"] for process in hosts[0].processes()) == sorted(host.name for host in hosts)


def test_back_when_it_fails_the_second_time(tmp_path):
    """What served before the first time is what it goes back to, though the link leads to the new release already."""
    with serving_hosts(tmp_path, ("here",)) as hosts:
        (host,) = hosts
        small_release(host.root / "releases" / "older")
        (host.root / "previous").symlink_to("releases/older")
        release = {"app_switchover_release": "new", "app_switchover_directory": str(small_release(tmp_path / "new"))}
        has_link = f"lookup('ansible.builtin.pipe', 'readlink {host.root}/current') == 'releases/new'"
        status, words = run_on(hosts, each={"here": _cut_once(has_link)}, **release)
        assert status != 0 and host.linked() == "new" and host.serving() == "old", words
        (tmp_path / "fails.yml").write_text("- name: Fail once it serves\n  ansible.builtin.fail:\n    msg: the operator says no\n")
        status, words = run_on(hosts, app_switchover_hooks={"after_switch": [str(tmp_path / "fails.yml")]}, **release)
        assert status != 0 and "the operator says no Release old serves." in words and (host.linked(), host.serving()) == ("old", "old"), words
        # What served before that was forgotten when the first run noted what served then; it is not made up.
        assert not (host.root / "previous").is_symlink() and not (host.root / ".switchover").is_symlink()
