# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The release that served before serves again, on its own request: what rollback asks for."""

from __future__ import annotations

import pytest

from tests.switchover.small_host import run_on, serving_hosts, small_release

pytestmark = pytest.mark.one_major

GO_BACK = """
- name: Go back
  hosts: app
  gather_facts: false
  tasks:
    - name: Go back
      ansible.builtin.include_role:
        name: rnltlabs.unified_user.app_switchover
        tasks_from: go_back.yml

    - name: Show the step
      ansible.builtin.debug:
        msg: "{{ unified_user_steps[-1].result }}, {{ unified_user_steps[-1].detail }}"
"""


def test_the_release_before(tmp_path):
    playbook = tmp_path / "back.yml"
    playbook.write_text(GO_BACK)
    with serving_hosts(tmp_path, ("here",)) as hosts:
        (host,) = hosts
        status, words = run_on(hosts, playbook=playbook)
        assert status != 0 and "names no release, so none is known that served before. Set app_switchover_back_to to one of old." in words
        release = small_release(tmp_path / "new")
        status, words = run_on(hosts, app_switchover_release="new", app_switchover_directory=str(release))
        assert status == 0 and host.serving() == "new" and host.linked("previous") == "old", words
        status, words = run_on(hosts, playbook=playbook, app_switchover_back_to="gone")
        assert status != 0 and "is not in" in words and "one of new, old." in words and host.serving() == "new"

        # The link was set, and no process reloaded, when an earlier run was ended.
        (host.root / "current").unlink()
        (host.root / "current").symlink_to("releases/old")
        (host.root / ".switchover").symlink_to("back")
        status, words = run_on(hosts, app_switchover_release="new", app_switchover_directory=str(release))
        assert status != 0 and "it is going back to the release before, or failed to" in words
        status, words = run_on(hosts, playbook=playbook)
        assert status == 0 and "changed, release old serves again" in words and host.serving() == "old", words
        assert not (host.root / ".switchover").is_symlink()
        status, words = run_on(hosts, playbook=playbook)
        assert status == 0 and "ok, release old served already" in words and "changed=0" in words

        # Forward again, and back to a release by its name while its processes are gone.
        status, words = run_on(hosts, app_switchover_release="new", app_switchover_directory=str(release))
        assert status == 0 and host.serving() == "new" and len(host.processes()) == 1, words
        status, words = run_on(hosts, playbook=playbook, app_switchover_back_to="old")
        assert status == 0 and "release old serves again, new did before" in words and host.serving() == "old"


def test_not_while_a_switchover_is_under_way(tmp_path):
    playbook = tmp_path / "back.yml"
    playbook.write_text(GO_BACK)
    with serving_hosts(tmp_path, ("here",)) as hosts:
        small_release(hosts[0].root / "releases" / "older")
        (hosts[0].root / ".switchover").symlink_to("switch")
        status, words = run_on(hosts, playbook=playbook, app_switchover_back_to="older")
        assert status != 0 and "Failed to go back on here: another switchover is under way there" in words and hosts[0].serving() == "old"
