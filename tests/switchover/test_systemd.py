# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Two instances under a real systemd, with units of the system and with units of an account: switched, gone back by themselves, taken back."""

from __future__ import annotations

import pytest

from tests.switchover.small_host import run_on
from tests.switchover.systemd_host import SERVER, Clients, systemd_hosts
from tests.switchover.test_going_back import GO_BACK

pytestmark = pytest.mark.one_major
ODD = """it's $5 and ${PATH} "twice" `here` %n \\ # no comment"""
LOOK_AND_SWITCH = """
- name: Look at the hosts, and switch them
  hosts: app
  gather_facts: false
  tasks:
    - name: Look
      ansible.builtin.import_role:
        name: rnltlabs.unified_user.app_preflight

    - name: Switch
      ansible.builtin.import_role:
        name: rnltlabs.unified_user.app_switchover
"""
#: Notes which release an instance runs at that moment.
TOLD = """
- name: Ask the instance
  ansible.builtin.uri:
    url: "http://127.0.0.1:{{ app_switchover_instance_port }}/"
  register: told

- name: Note what it said
  ansible.builtin.shell: echo {{ __app_switchover_hook }} {{ app_switchover_instance_port }} {{ told.json.release }} >> /tmp/told
"""
#: It runs on the spare port and dies where it should serve.
DYING_WHERE_IT_SERVES = "if (Number(process.argv[process.argv.indexOf('-p') + 1]) % 1000 < 900) process.exit(1);" + SERVER
CRASHING = SERVER + "\nsetTimeout(() => process.exit(1), 2500);\n"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Both, with release one on two instances each."""
    folder = tmp_path_factory.mktemp("systemd")
    playbook = folder / "look_and_switch.yml"
    playbook.write_text(LOOK_AND_SWITCH)
    with systemd_hosts(folder) as hosts:
        status, words = run_on(hosts, playbook=playbook, app_switchover_first=True, app_switchover_environment={"ODD": ODD}, **hosts[0].release("one"))
        assert status == 0 and [host.serving() for host in hosts] == [["one", "one"]] * 2, words
        yield hosts


def _only_its_instances_are_there(host) -> bool:
    listed = host.systemctl("list-units", "--all", "--plain", "--no-legend", "small-*.service").splitlines()
    return [line.split()[0::2][:2] for line in listed] == [[f"small-{host.name}@{port}.service", "active"] for port in host.ports]


def test_what_it_runs_as_and_what_it_may(hosts):
    account = int(hosts[0].machine.run("id", "-u", "deploy"))
    for host in hosts:
        for answer in host.answers():
            assert (answer["directory"], answer["user"], answer["odd"]) == (f"{host.root}/releases/one", account, ODD)
            assert answer["writes"] == {"home": host.name == "user", "release": True}
        assert host.machine.run("stat", "-c", "%a %U", f"{host.root}/releases/one/.unified_user_service") == "600 deploy"
        unit = f"small-{host.name}@{host.ports[1]}.service"
        assert host.systemctl("is-enabled", unit) == "enabled" and "twice" not in host.systemctl("show", unit)
        assert _only_its_instances_are_there(host)


def test_switched_without_a_failed_request(hosts, tmp_path):
    """And the operator's tasks are told of each instance, before it is drained and when it serves again."""
    told = tmp_path / "told.yml"
    told.write_text(TOLD)
    each = {"system": {"app_switchover_hooks": {"before_instance": [str(told)], "after_instance": [str(told)]}}}
    with Clients(hosts) as clients:
        status, words = run_on(hosts, each=each, **hosts[0].release("two"))
        assert status == 0 and [host.serving() for host in hosts] == [["two", "two"]] * 2, words
    assert not clients.failed and clients.finished > 4
    assert set(clients.answered) == {(host.name, release) for host in hosts for release in ("one", "two")}
    system = hosts[0]
    expected = [f"{moment} {port} {release}" for port in system.ports for moment, release in (("before_instance", "one"), ("after_instance", "two"))]
    assert system.machine.run("cat", "/tmp/told").splitlines() == expected
    assert all(host.linked("previous") == "one" and _only_its_instances_are_there(host) for host in hosts)


def test_back_by_itself(hosts):
    """A candidate that crashes, and a release that is sound on the spare port and dies on the instances' own."""
    system, user = hosts
    each = {"system": {**system.release("crashing", CRASHING), "app_switchover_watch_seconds": 4}, "user": user.release("dying", DYING_WHERE_IT_SERVES)}
    with Clients(hosts) as clients:
        status, words = run_on(hosts, each=each)
    assert status != 0 and not clients.failed and {release for _host, release in clients.answered} == {"two"}
    assert "Failed to switch system to release crashing, in step" in words and "Failed to switch user to release dying, in step" in words
    for host in hosts:
        assert "Release two serves. The bad release is kept in" in words[words.index(f"Failed to switch {host.name} to") :][:2000]
        assert host.serving() == ["two", "two"] and host.linked() == "two" and host.linked("previous") == "one" and not host.linked(".switchover")
        assert _only_its_instances_are_there(host) and not host.systemctl("list-units", "--failed", "--plain", "--no-legend")


def test_taken_back(hosts, tmp_path):
    playbook = tmp_path / "back.yml"
    playbook.write_text(GO_BACK)
    # An earlier run was cut off when one of two instances had followed the link.
    user = hosts[1]
    user.machine.run("runuser", "-u", "deploy", "--", "ln", "-sfn", "releases/one", f"{user.root}/current")
    user.systemctl("restart", f"small-user@{user.ports[0]}.service")
    with Clients(hosts) as clients:
        status, words = run_on(hosts, playbook=playbook)
    assert status == 0 and words.count("changed, release one serves again") == 2 and words.count("again, two did before") == 1, words
    assert not clients.failed and [host.serving() for host in hosts] == [["one", "one"]] * 2
