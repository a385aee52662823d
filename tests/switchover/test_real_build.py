# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The reference application out of a repository: edited, installed from its lock file, generated and built by the role itself, then serving.

Installing and building takes minutes, so it is asked for: ``pytest -m real_build tests/switchover``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request

import pytest
import yaml

from tests.app import application, prisma_cli
from tests.app.application_host import BASE_PATH
from tests.playbook_process import ROOT
from tests.switchover.small_host import run_on, serving_hosts
from tests.switchover.test_stages import EDITS

pytestmark = [pytest.mark.one_major, pytest.mark.real_build]
_OF_THE_PROCESS = ("PATH", "HOME", "PORT", "NODE_ENV", "CI")


def _repository(folder):
    """The application's source with what builds it, committed."""
    application.make_source(folder, "legacy")
    described = json.loads((application.APPLICATION / "package.json").read_text())
    (folder / "package.json").write_text(json.dumps({**described, "scripts": {"build": "next build"}}))
    for name in ("package-lock.json", ".npmrc", "prisma.config.ts"):
        shutil.copy(application.APPLICATION / name, folder / name)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def test_installed_generated_and_built(cluster, templates, tmp_path):
    defaults = yaml.safe_load((ROOT / "roles" / "app_switchover" / "defaults" / "main.yml").read_text())
    assert defaults["app_switchover_commands"] == [["npm", "ci"], ["npx", "--no-install", "prisma", "generate"], ["npm", "run", "build"]]
    stand = application.Stand(BASE_PATH)
    with templates.database("reference") as name, serving_hosts(tmp_path, ("here",), without=("here",)) as (host,):
        environment = {key: value for key, value in stand.environment(cluster, name, SMTP_URL="").items() if key not in _OF_THE_PROCESS}
        status, words = run_on(
            [host], **EDITS, app_switchover_release="built", app_switchover_first=True, app_switchover_source="git",
            app_switchover_git_repository=str(_repository(tmp_path / "repository")), app_switchover_git_version="HEAD",
            app_switchover_commands=defaults["app_switchover_commands"], app_switchover_script=defaults["app_switchover_script"],
            app_switchover_arguments=defaults["app_switchover_arguments"], app_switchover_environment=environment,
            # Engines that nobody runs are not downloaded, and what npm has is not asked for again.
            app_switchover_build_environment={
                **prisma_cli.offline_environment(), "DATABASE_URL": "postgresql://localhost/none", "CI": "1", "npm_config_prefer_offline": "true",
            },
            app_switchover_health_path=BASE_PATH + "/api/health", app_switchover_health_seconds=60,
        )  # fmt: skip
        assert status == 0 and words.count("non-zero return code") == 0, words
        release = host.root / "releases" / "built"
        assert not (release / "node_modules").is_symlink() and (release / "node_modules" / ".prisma" / "client" / "index.js").is_file()
        for path, expected in (("health", b'"release":"built"'), ("auth/providers", b'"magic-link"')):
            with urllib.request.urlopen(f"http://127.0.0.1:{host.port}{BASE_PATH}/api/{path}", timeout=10) as answer:
                assert expected in answer.read()
