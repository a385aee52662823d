"""Every check of the project can fail: each is shown something wrong and has to say so."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from pathlib import Path

import changelog
import check_argument_specs
import check_artifact
import check_task_files
import check_variable_names
import pytest
import render_readmes
import run_sanity
import run_tests
import scan_output
import yaml

from tests import seeded_secrets

ROOT = run_tests.ROOT

GOOD_MODULE = '''\
#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Say hello."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hello
short_description: Say hello
description: [Says hello.]
author: [RNLT Labs (@rnltlabs)]
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
options:
  name:
    description: To whom.
    type: str
"""

EXAMPLES = r"""
- name: Greet
  rnltlabs.unified_user.hello:
"""

RETURN = r"""
greeting:
  description: The greeting.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule


def main():
    """Greets."""
    AnsibleModule({"name": {"type": "str"}}, supports_check_mode=True).exit_json(greeting="hello")


if __name__ == "__main__":
    main()
'''

GOOD_PLAYBOOK = """\
---
- name: Greet
  hosts: all
  tasks:
    - name: Say hello
      ansible.builtin.debug:
        msg: hello
"""

SPECIFICATION = {
    "greet_name": {"type": "str", "default": "you", "description": "To whom."},
    "greet_times": {"type": "int", "default": 1, "description": "How often."},
    "greet_words": {"type": "list", "elements": "str", "default": [], "description": "With what."},
    "unified_user_login_db": {"type": "str", "required": True, "description": "Where."},
    "greet_password": {"type": "str", "default": "", "description": "The way in."},
}


class Indented(yaml.SafeDumper):
    """Writes lists the way yamllint wants them."""

    def increase_indent(self, flow=False, indentless=False):
        return super().increase_indent(flow, False)


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.dump(content, Dumper=Indented, sort_keys=False, explicit_start=True))
    return path


def write_role(root: Path, options: dict, defaults: dict) -> Path:
    role = root / "roles" / "greet"
    write(role / "meta" / "argument_specs.yml", {"argument_specs": {"main": {"short_description": "Greet", "options": options}}})
    write(role / "defaults" / "main.yml", defaults)
    write(role / "tasks" / "main.yml", "---\n- name: Greet\n  ansible.builtin.debug:\n    msg: hello\n")
    write(role / "README.md", f"# greet\n\n{render_readmes.BEGIN}\n{render_readmes.END}\n")
    return role


def defaults_of(options: dict) -> dict:
    return {name: option["default"] for name, option in options.items() if "default" in option}


@pytest.fixture
def checkout(tmp_path):
    """A small collection with our configuration, in a repository of its own; everything in it is right."""
    root = tmp_path / "checkout"
    for name in ("galaxy.yml", "LICENSE", "meta/runtime.yml", "changelogs/config.yaml", "pyproject.toml", ".yamllint", ".ansible-lint"):
        write(root / name, (ROOT / name).read_text())
    write(root / "README.md", "# Greetings\n")
    write(root / ".gitignore", "/.ansible/\n/.cache/\n")
    write(root / "meta" / "runtime.yml", {"requires_ansible": ">=2.18.0", "action_groups": {"unified_user": ["hello"]}})
    write(root / "changelogs" / "fragments" / "first.yml", {"release_summary": "The first."})
    write(root / "plugins" / "modules" / "hello.py", GOOD_MODULE)
    write(root / "plugins" / "doc_fragments" / "connection.py", "class ModuleDocFragment:\n    DOCUMENTATION = 'options: {}'\n")
    write(root / "playbooks" / "greet.yml", GOOD_PLAYBOOK)
    write(root / "CHANGELOG.rst", "Changes\n=======\n")
    write(root / "inventories" / "staging" / "hosts.yml", "---\nall:\n  hosts:\n    localhost:\n")
    write_role(root, SPECIFICATION, defaults_of(SPECIFICATION))
    render_readmes.main(["--roles", str(root / "roles")])
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    track(root)
    return root


def track(root: Path) -> None:
    subprocess.run(["git", "-C", str(root), "add", "--all"], check=True)


# --- argument specifications ------------------------------------------------------------------------------------------


def test_a_role_that_agrees_with_its_specification_passes(tmp_path):
    write_role(tmp_path, SPECIFICATION, {**defaults_of(SPECIFICATION), "__greet_private": 1})
    assert check_argument_specs.main(["--roles", str(tmp_path / "roles")]) == 0


@pytest.mark.parametrize(
    ("change", "defaults", "said"),
    [
        ({}, {"greet_extra": 1}, "in defaults/main.yml, not in meta"),
        ({"greet_more": {"type": "str", "default": "x", "description": "More."}}, {"greet_more": ...}, "not in defaults/main.yml"),
        ({}, {"greet_name": "me"}, "different defaults"),
        ({"greet_name": {"type": "str", "description": "To whom."}}, {"greet_name": "you"}, "not in meta/argument_specs.yml"),
        ({}, {"greet_times": True}, "different defaults"),
        ({"greet_times": {"type": "int", "default": "1", "description": "How often."}}, {}, "its default is no int"),
        ({"greet_times": {"type": "int", "default": True, "description": "How often."}}, {}, "its default is no int"),
        ({"greet_times": {"type": "number", "default": 1, "description": "How often."}}, {}, "type 'number'"),
        ({"greet_words": {"type": "list", "default": [], "description": "With what."}}, {}, "what its elements are"),
        ({"greet_name": {"type": "str", "default": "you", "choices": ["me"], "description": "To whom."}}, {}, "none of its choices"),
        ({"greet_name": {"type": "str", "default": "you"}}, {}, "no description"),
        ({"name": {"type": "str", "default": "", "description": "A name."}}, {}, "must start with greet_"),
        ({"greet_password": {"type": "raw", "default": "", "description": "The way in."}}, {}, "a secret is a str"),
        ({"greet_password": {"type": "str", "default": "", "choices": [""], "description": "The way in."}}, {}, "choices of a secret"),
        ({"greet_name": {"type": "str", "required": True, "default": "you", "description": "To whom."}}, {}, "can have no default"),
    ],
)
def test_a_role_that_differs_from_its_specification_fails(tmp_path, capsys, change, defaults, said):
    options = {**SPECIFICATION, **change}
    wanted = {name: value for name, value in {**defaults_of(options), **defaults}.items() if value is not ...}
    write_role(tmp_path, options, wanted)
    assert check_argument_specs.main(["--roles", str(tmp_path / "roles")]) == 1
    assert said in capsys.readouterr().out


def test_no_role_at_all_is_no_pass(tmp_path):
    assert check_argument_specs.main(["--roles", str(tmp_path)]) == 1
    assert render_readmes.main(["--roles", str(tmp_path), "--check"]) == 1
    assert check_task_files.main(["--root", str(tmp_path)]) == 1
    assert check_variable_names.main(["--roles", str(tmp_path)]) == 1


# --- names of variables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("defaults/main.yml", {"name": 1}),
        ("vars/main.yml", {"__name": 1}),
        ("tasks/more.yml", [{"ansible.builtin.command": "x", "register": "result"}]),
        ("tasks/more.yml", [{"block": [{"ansible.builtin.set_fact": {"fact": 1}}]}]),
        ("tasks/more.yml", [{"block": [], "rescue": [{"ansible.builtin.debug": {}, "vars": {"other_role_name": 1}}]}]),
        ("tasks/more.yml", [{"ansible.builtin.debug": {}, "loop": [1], "loop_control": {"loop_var": "thing"}}]),
    ],
)
def test_name_that_does_not_tell_its_role_fails(checkout, capsys, path, content):
    roles = ["--roles", str(checkout / "roles")]
    right = [
        {"ansible.builtin.command": "x", "register": "__greet_result"},
        {"ansible.builtin.set_fact": {"unified_user_steps": [], "greet_done": True}},
        {"ansible.builtin.import_role": {"name": "other"}, "vars": {"other_name": 1}},
    ]
    write(checkout / "roles" / "greet" / "tasks" / "right.yml", right)
    assert check_variable_names.main(roles) == 0
    write(checkout / "roles" / "greet" / path, content)
    assert check_variable_names.main(roles) == 1
    assert f"roles/greet/{path}" in capsys.readouterr().out


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_lengths_within_the_limits_pass(checkout):
    write(checkout / "roles" / "greet" / "tasks" / "full.yml", "# line\n" * 50)
    assert check_task_files.main(["--root", str(checkout)]) == 0


def test_long_task_file_fails(checkout, capsys):
    write(checkout / "roles" / "greet" / "tasks" / "parts" / "long.yml", "# line\n" * 51)
    assert check_task_files.main(["--root", str(checkout)]) == 1
    assert "roles/greet/tasks/parts/long.yml: 51 lines" in capsys.readouterr().out


def test_long_or_missing_main_fails(checkout, capsys):
    write(checkout / "plugins" / "modules" / "long.py", "def main():\n" + "    pass\n" * 40)
    write(checkout / "plugins" / "modules" / "none.py", "x = 1\n")
    assert check_task_files.main(["--root", str(checkout)]) == 1
    said = capsys.readouterr().out
    assert "main() has 41 lines" in said
    assert "it has no main()" in said


# --- READMEs ----------------------------------------------------------------------------------------------------------


def test_rendered_table_passes_until_the_specification_changes(checkout, capsys):
    roles = ["--roles", str(checkout / "roles")]
    assert render_readmes.main([*roles, "--check"]) == 0
    readme = (checkout / "roles" / "greet" / "README.md").read_text()
    assert "| `greet_times` | int | `1` | How often. |" in readme
    assert "| `unified_user_login_db` | str | **required** | Where. |" in readme
    options = {**SPECIFICATION, "greet_times": {"type": "int", "default": 2, "description": "How often | not."}}
    write(checkout / "roles" / "greet" / "meta" / "argument_specs.yml", {"argument_specs": {"main": {"options": options}}})
    assert render_readmes.main([*roles, "--check"]) == 1
    assert "out of date" in capsys.readouterr().out
    assert render_readmes.main(roles) == 0
    assert "How often \\| not." in (checkout / "roles" / "greet" / "README.md").read_text()
    assert render_readmes.main([*roles, "--check"]) == 0


def test_readme_without_markers_fails(checkout, capsys):
    write(checkout / "roles" / "greet" / "README.md", "# greet\n")
    assert render_readmes.main(["--roles", str(checkout / "roles"), "--check"]) == 1
    assert "must hold the line" in capsys.readouterr().out


# --- secrets in output ------------------------------------------------------------------------------------------------


@pytest.fixture
def register(tmp_path, monkeypatch):
    """A register of this test's own, with one secret in it."""
    monkeypatch.setattr(seeded_secrets, "REGISTER", tmp_path / "register.txt")
    monkeypatch.setattr(scan_output, "REGISTER", tmp_path / "register.txt")
    return seeded_secrets.new_secret("leak")


@pytest.fixture
def output(tmp_path):
    return write(tmp_path / "output" / "run.log", "first line\nnothing here\n").parent


def test_clean_output_passes(register, output):
    assert scan_output.main([str(output)]) == 0


@pytest.mark.parametrize("hide", [str, lambda text: text[:9] + "\n    " + text[9:]], ids=["plain", "broken over lines"])
def test_secret_in_output_fails_and_is_not_repeated(register, output, capsys, hide):
    write(output / "more" / "play.log", f"first line\nmsg: {hide(register)}\n")
    assert scan_output.main([str(output)]) == 1
    said = capsys.readouterr().out
    assert "play.log" in said
    assert "leak" in said
    assert register not in said


def test_secret_in_compressed_output_fails(register, output):
    (output / "play.log.gz").write_bytes(gzip.compress(f"msg: {register}\n".encode()))
    assert scan_output.main([str(output)]) == 1


def test_files_that_are_there_to_hold_a_secret_are_no_output(register, output):
    write(output / "connection.yml", register)
    assert scan_output.main([str(output)]) == 0


def test_the_rows_of_a_backup_are_no_output_and_what_is_written_about_it_is(register, output):
    backup = output / "backups" / "massava-20261123T000000Z"
    write(backup / "dump" / "2661.dat", register)
    assert scan_output.main([str(output)]) == 0
    write(backup / "manifest.json", register)
    assert scan_output.main([str(output)]) == 1


def test_nothing_to_scan_or_to_search_for_is_no_pass(register, output, tmp_path):
    (tmp_path / "empty").mkdir()
    assert scan_output.main([str(tmp_path / "empty")]) == 1
    seeded_secrets.REGISTER.unlink()
    assert scan_output.main([str(output)]) == 1


def test_secret_too_short_to_search_for_is_refused(register):
    with pytest.raises(ValueError, match="at least 8 characters"):
        seeded_secrets.register_secrets(["short"])


# --- the linters, under our configuration -----------------------------------------------------------------------------


def lint_command(name: str) -> list[str]:
    return dict(run_tests.lint_checks())[name]


def lint(name: str, root: Path, *replace: str) -> subprocess.CompletedProcess:
    command = [*lint_command(name)[:1], *replace] if replace else lint_command(name)
    return subprocess.run(command, cwd=root, env=run_tests.environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "path", "content", "said"),
    [
        ("ruff", "tools/wrong.py", "import os\n", "F401"),
        ("ruff", "tests/wrong.py", "import subprocess\nsubprocess.run('ls', shell=True)\n", "S602"),
        ("modules parse on Python 3.8", "plugins/module_utils/_wrong.py", "match 1:\n    case 1:\n        pass\n", "3.8"),
        ("yamllint", "playbooks/wrong.yml", "---\na: yes\n", "truthy"),
        ("ansible-lint", "playbooks/wrong.yml", "---\n- name: Wrong\n  hosts: all\n  tasks:\n    - name: Do\n      debug:\n        msg: x\n", "fqcn"),
        ("ansible-lint", "roles/greet/tasks/more.yml", "---\n- name: Do\n  ansible.builtin.command: \"true\"\n", "no-changed-when"),
    ],
)
def test_linter_accepts_what_is_right_and_rejects_what_is_wrong(checkout, name, path, content, said):
    before = lint(name, checkout)
    assert before.returncode == 0, before.stdout + before.stderr
    write(checkout / path, content)
    track(checkout)
    after = lint(name, checkout)
    assert after.returncode != 0
    assert said in after.stdout + after.stderr


def test_shellcheck_rejects_an_unquoted_variable(tmp_path):
    script = write(tmp_path / "wrong.sh", "#!/usr/bin/env bash\nrm $1\n")
    done = lint("shellcheck", tmp_path, str(script))
    assert done.returncode != 0
    assert "SC2086" in done.stdout


def test_malformed_changelog_fragment_fails(checkout):
    assert lint("changelog fragments", checkout).returncode == 0
    write(checkout / "changelogs" / "fragments" / "wrong.yml", {"no_such_section": ["x"]})
    assert lint("changelog fragments", checkout).returncode != 0


def test_changelog_is_out_of_date_once_a_fragment_is_added(checkout, capsys):
    root = ["--root", str(checkout)]
    assert changelog.main([*root, "--check"]) == 1
    assert changelog.main(root) == 0
    assert changelog.main([*root, "--check"]) == 0
    write(checkout / "changelogs" / "fragments" / "second.yml", {"bugfixes": ["A second."]})
    assert changelog.main([*root, "--check"]) == 1
    assert "Run make changelog" in capsys.readouterr().out


# --- the built collection and ansible-test ----------------------------------------------------------------------------


def artifact_results(root: Path, tmp_path: Path) -> tuple[int, run_tests.Tally]:
    junit = tmp_path / "artifact.xml"
    return check_artifact.main(["--root", str(root), "--junit", str(junit)]), run_tests.read_junit(junit)


def test_built_collection_passes_when_all_is_right(checkout, tmp_path):
    status, tally = artifact_results(checkout, tmp_path)
    assert tally.failures == []
    assert status == 0
    assert tally.passed == 7


def test_built_collection_fails_for_each_fault_in_it(checkout, tmp_path, capsys):
    write(checkout / "inventories" / "staging" / "vault.yml", "---\na: b\n")
    write(checkout / "galaxy.yml", (checkout / "galaxy.yml").read_text().replace('  - "inventories/*vault.yml"\n', ""))
    write(checkout / "plugins" / "modules" / "second.py", GOOD_MODULE.replace("RETURN = ", "_RETURN = "))
    write(checkout / "playbooks" / "wrong.yml", "---\n- name: Greet\n  hosts: all\n  roles:\n    - role: rnltlabs.unified_user.nobody\n")
    track(checkout)
    status, tally = artifact_results(checkout, tmp_path)
    assert status == 1
    assert set(tally.failures) == {
        f"artifact::{name}" for name in ("contents", "action group", "documentation of module second", "syntax of playbook wrong")
    }
    said = capsys.readouterr().out
    assert "inventories/staging/vault.yml: does not belong there" in said


def test_link_that_leads_out_of_the_built_collection_fails(checkout, tmp_path, capsys):
    (checkout / "playbooks" / "nowhere").symlink_to("../pyproject.toml")
    track(checkout)
    status, tally = artifact_results(checkout, tmp_path)
    assert status == 1
    assert "artifact::contents" in tally.failures
    assert "playbooks/nowhere: does not belong there" in capsys.readouterr().out


def test_collection_that_cannot_be_built_fails(checkout, tmp_path):
    write(checkout / "galaxy.yml", "---\nnamespace: rnltlabs\nname: unified_user\nversion: one\ndependencies: {}\n")
    status, tally = artifact_results(checkout, tmp_path)
    assert status == 1
    assert tally.failures == ["artifact::build"]


def test_ansible_test_sees_tracked_files_and_rejects_what_is_wrong(checkout, tmp_path):
    assert run_sanity.run(checkout, tmp_path / "before", ["line-endings"]) == 0
    write(checkout / "playbooks" / "wrong.yml", "---\r\n[]\r\n")
    assert run_sanity.run(checkout, tmp_path / "untracked", ["line-endings"]) == 0
    track(checkout)
    assert run_sanity.run(checkout, tmp_path / "after", ["line-endings"]) != 0
    assert run_tests.read_junit(tmp_path / "after" / "ansible-test-sanity-line-endings.xml").failed == 1


# --- the driver -------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(tmp_path):
    return tmp_path / "stage.log"


def test_command_without_a_result_has_failed():
    assert run_tests.judge(run_tests.Tally(), 0, "x").failures == ["x: nothing ran"]
    assert run_tests.judge(run_tests.Tally(passed=3), 2, "x").failures == ["x: exit status 2"]
    assert run_tests.judge(run_tests.Tally(passed=3), 124, "x").failures == ["x: it took too long and was ended"]
    assert run_tests.judge(run_tests.Tally(passed=3), 0, "x").failed == 0


def test_output_is_shown_and_kept(log, capfd):
    assert run_tests.run([sys.executable, "-c", "print('seen'); raise SystemExit(3)"], log, 30) == 3
    assert capfd.readouterr().out == "seen\n"
    assert log.read_text() == "seen\n"


def test_command_that_takes_too_long_is_ended_with_its_children(log):
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'])"
    assert run_tests.run([sys.executable, "-c", script], log, 2) == 124
    assert "ended after 2 s" in log.read_text()


def test_what_was_started_ends_with_the_driver(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import run_tests; from pathlib import Path\n"
        "run_tests.OUTPUT = Path(sys.argv[2])\n"
        "sleep = [sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)']\n"
        "run_tests.STAGES = {'s': lambda: run_tests.judge(run_tests.Tally(), run_tests.run(sleep, run_tests.OUTPUT / 's.log', 60), 's')}\n"
        "run_tests.main([])\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", script, str(ROOT / "tools"), str(tmp_path)], stdout=subprocess.PIPE, text=True)
    pid = next(int(line) for line in driver.stdout if line.strip().isdigit())
    driver.terminate()
    driver.wait(30)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_missing_test_directory_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(run_tests, "OUTPUT", tmp_path)
    tally = run_tests.pytest("missing", "tests/no_such_directory", seconds=60, workers=1)
    assert (tally.passed, tally.failed) == (0, 1)


def test_pytest_results_are_counted_from_junit(tmp_path, monkeypatch):
    monkeypatch.setattr(run_tests, "OUTPUT", tmp_path)
    tests = write(
        tmp_path / "test_it.py",
        "import pytest\n"
        "def test_good(): print('printed')\n"
        "def test_bad(): assert False\n"
        "@pytest.fixture\ndef broken():\n    yield\n    raise OSError\n"
        "def test_error(broken): pass\n"
        "@pytest.mark.skip(reason='because')\ndef test_skipped(): pass\n",
    )
    tally = run_tests.pytest("sample", str(tests), seconds=60, workers=1)
    assert tally.failed == 2
    assert tally.skipped == 1
    assert "because" in tally.skips[0]
    assert tally.passed >= 1
    assert "printed" in (tmp_path / "sample.xml").read_text(), "what passing tests print is scanned for secrets, too"


@pytest.mark.parametrize(
    ("tallies", "last", "status"),
    [
        ([run_tests.Tally(passed=2), run_tests.Tally(passed=1)], "3 passed, 0 failed", 0),
        ([run_tests.Tally(passed=2, skipped=1, skips=["why"]), run_tests.Tally(failed=1, failures=["what"])], "2 passed, 1 failed, 1 skipped", 1),
    ],
)
def test_last_line_and_exit_status_tell_the_result(tmp_path, monkeypatch, capsys, tallies, last, status):
    monkeypatch.setattr(run_tests, "OUTPUT", tmp_path / "output")
    monkeypatch.setattr(run_tests, "STAGES", {f"s{number}": (lambda tally=tally: tally) for number, tally in enumerate(tallies)})
    assert run_tests.main([]) == status
    assert capsys.readouterr().out.endswith(f"\n{last}\n")


def test_stage_that_breaks_is_a_failure_and_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    def broken():
        raise OSError("no such program")

    monkeypatch.setattr(run_tests, "OUTPUT", tmp_path / "output")
    monkeypatch.setattr(run_tests, "STAGES", {"first": broken, "second": lambda: run_tests.Tally(passed=1)})
    assert run_tests.main([]) == 1
    said = capsys.readouterr().out
    assert "first: no such program" in said
    assert said.endswith("\n1 passed, 1 failed\n")


def test_missing_major_is_skipped_aloud(tmp_path, monkeypatch):
    monkeypatch.setattr(run_tests, "OUTPUT", tmp_path)
    monkeypatch.setattr(run_tests, "pytest", lambda *arguments, **options: run_tests.Tally(passed=1))
    monkeypatch.setattr(run_tests.embedded_postgres, "available_majors", lambda: [17, 18])
    tally = run_tests.integration()
    assert tally.skips == ["integration on PostgreSQL 15: no server of that major is installed here"]


def test_ci_runs_exactly_the_tests():
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


def test_stages_that_wait_run_beside_others_and_are_counted(monkeypatch, capfd, tmp_path):
    order, gate = [], threading.Event()

    def stage(name: str, passed: int):
        def function():
            order.append(name)
            if name == "slow":
                gate.wait(10)
                run_tests.run([sys.executable, "-c", "print('hidden')"], tmp_path / "beside.log", 10)
            if name == "second":
                gate.set()
            return run_tests.Tally(passed=passed)

        return function

    monkeypatch.setattr(run_tests, "BESIDE", {"slow": ("first", "second")})
    total = run_tests.run_stages({name: stage(name, passed) for name, passed in (("first", 1), ("slow", 2), ("second", 4), ("third", 8))})
    assert total.passed == 15 and total.failed == 0 and set(order[:2]) == {"first", "slow"} and order[2:] == ["second", "third"]
    shown = capfd.readouterr().out
    assert "hidden" not in shown and shown.index("=== slow: 2 passed") < shown.index("=== (4/4) third")
