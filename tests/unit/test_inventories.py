"""The example inventories: what an operator fills in is complete, known to the roles, explained, and holds no secret."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAMS = Path(sys.executable).parent
ENVIRONMENTS = ("staging", "production")
GROUPS = {"database", "app"}


def run(program: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run([PROGRAMS / program, *arguments], cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def variables(environment: str) -> dict[str, dict]:
    """Variables by file, as they are written."""
    folder = ROOT / "inventories" / environment / "group_vars"
    return {str(file.relative_to(folder)): yaml.safe_load(file.read_text()) for file in sorted(folder.rglob("*.yml"))}


def all_variables(environment: str) -> dict:
    return {name: value for file in variables(environment).values() for name, value in file.items()}


def template(environment: str) -> Path:
    return ROOT / "inventories" / environment / "group_vars" / "all" / "vault.yml.example"


def role_options(roles: str = "*") -> dict[str, dict]:
    """Every variable that these roles know, with its specification."""
    files = sorted((ROOT / "roles").glob(f"{roles}/meta/argument_specs.yml"))
    assert files
    specs = [spec for file in files for spec in yaml.safe_load(file.read_text())["argument_specs"].values()]
    return {name: option for spec in specs for name, option in spec.get("options", {}).items()}


@pytest.fixture(params=ENVIRONMENTS)
def environment(request) -> str:
    return request.param


def test_ansible_reads_it_and_it_has_both_groups(environment):
    found = json.loads(run("ansible-inventory", "--inventory", f"inventories/{environment}", "--list", cwd=ROOT))
    assert set(found["all"]["children"]) - {"ungrouped"} == GROUPS
    for group in GROUPS:
        hosts = found[group]["hosts"]
        assert hosts
        assert all(host.endswith(".example.com") for host in hosts), "an example must not name a host that may exist"
        assert all(found["_meta"]["hostvars"][host]["ansible_user"] for host in hosts)


def test_the_guides_command_finds_the_hosts(environment):
    listed = run("ansible-playbook", "migrate.yml", "-i", environment, "--list-hosts", cwd=ROOT / "playbooks")
    assert "hosts (1):" in listed
    assert re.search(r"^\s+db1\.\S*example\.com$", listed, re.MULTILINE)


def test_every_variable_is_known_to_a_role(environment):
    known = set(role_options())
    unknown = {name for name in all_variables(environment) if not name.startswith(("ansible_", "vault_"))} - known
    assert unknown == set(), "a misspelt variable would silently do nothing"


def test_every_variable_that_the_path_requires_is_there(environment):
    path = re.findall(r"rnltlabs\.unified_user\.(\w+)$", (ROOT / "playbooks" / "migrate.yml").read_text(), re.MULTILINE)
    assert "preflight" in path and "verification" in path
    required = {name for role in ("common", *path) for name, option in role_options(role).items() if option.get("required")}
    assert required
    assert required - set(all_variables(environment)) == set()


def test_the_schema_comes_from_the_release_that_serves(environment):
    """A switch makes releases beside it, and what is there is there before any switch."""
    there = all_variables(environment)
    assert there["schema_deploy_release_directory"] == there["app_switchover_root"] + "/current"
    assert there["schema_deploy_generate"] is False, "a release that serves is not written to"


def test_every_variable_is_explained(environment):
    for file in sorted((ROOT / "inventories" / environment).rglob("*.yml")):
        if file.name == "hosts.yml":
            continue
        explained = False
        for line in file.read_text().splitlines()[1:]:
            if line.startswith("#"):
                explained = True
            elif not line:
                explained = False
            elif re.match(r"[a-z_]+:", line):
                assert explained, f"{file}: {line.split(':')[0]} has no comment above it or its group"


def test_the_vault_template_and_the_variables_agree(environment):
    placeholders = yaml.safe_load(template(environment).read_text())
    used = set(re.findall(r"\bvault_\w+", json.dumps(list(variables(environment).values()))))
    assert set(placeholders) == used
    assert set(placeholders.values()) == {"REPLACE_ME"}


def test_no_secret_stands_in_the_open(environment):
    secret = {name for name, option in role_options().items() if option.get("no_log")}
    assert "unified_user_login_password" in secret
    for name in secret & set(all_variables(environment)):
        assert all_variables(environment)[name] == "{{ vault_" + name + " }}"
    assert not (template(environment).parent / "vault.yml").exists()


def test_a_filled_in_and_encrypted_vault_reaches_the_variables(environment, tmp_path, secret):
    shutil.copytree(ROOT / "inventories" / environment, tmp_path / "inventory")
    shutil.copy(ROOT / "ansible.cfg", tmp_path)
    password = secret("database")
    vault = tmp_path / "inventory" / "group_vars" / "all" / "vault.yml"
    vault.write_text(template(environment).read_text().replace("REPLACE_ME", password))
    (tmp_path / "vault_password").write_text(secret("vault"))
    with_password = ("--vault-password-file", "vault_password")
    run("ansible-vault", "encrypt", *with_password, str(vault), cwd=tmp_path)
    assert vault.read_text().startswith("$ANSIBLE_VAULT;")
    digest = hashlib.sha256(password.encode()).hexdigest()
    shown = run(
        "ansible", "database", "--inventory", "inventory", *with_password, "--connection", "local", "--module-name", "ansible.builtin.assert",
        "--args", json.dumps({"that": [f"unified_user_login_password | hash('sha256') == '{digest}'"], "quiet": True}), cwd=tmp_path,
    )
    assert "SUCCESS" in shown


def test_production_asks_for_more_than_staging():
    staging, production = (all_variables(environment) for environment in ENVIRONMENTS)
    assert set(staging) <= set(production)
    assert production["backup_minimum_bytes"] >= 1_000_000
    assert production["backup_minimum_bytes"] >= staging["backup_minimum_bytes"]
