# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The guide's two stages on the reference application's source: sign-in first, then the routes, each a release of its own."""

from __future__ import annotations

import subprocess

import pytest

from tests.app import application
from tests.switchover.small_host import run_on, serving_hosts, small_release

pytestmark = pytest.mark.one_major

EDITS = {
    "app_switchover_import_rewrites": [{"files": list(application.IMPORTS), "before": application.IMPORT_BEFORE, "after": application.IMPORT_AFTER}],
    "app_switchover_route_moves": [{"source": f"{route}-unified", "target": route} for route in application.ROUTES],
}


def test_sign_in_first_then_the_routes(tmp_path):
    repository = tmp_path / "repository"
    application.make_source(repository, "legacy")
    # The source is the application's; what serves needs no build.
    small_release(repository)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    git = {"app_switchover_source": "git", "app_switchover_git_repository": str(repository), "app_switchover_git_version": "HEAD", **EDITS}
    with serving_hosts(tmp_path, ("here",)) as hosts:
        (host,) = hosts
        for stage, stages in (("auth", ["auth"]), ("unified", ["auth", "routes"])):
            expected = tmp_path / stage
            application.make_source(expected, stage)
            compare = [["diff", "-r", str(expected / part), part] for part in ("app", "lib")]
            status, words = run_on(hosts, app_switchover_release=stage, app_switchover_stages=stages, app_switchover_commands=compare, **git)
            assert status == 0 and host.serving() == stage, words
        assert host.linked("previous") == "auth"
        status, words = run_on(hosts, app_switchover_release="x", app_switchover_stages=["both"], **git)
        assert status != 0 and "app_switchover_stages is ['both']. Name auth, routes, or both." in words and host.serving() == "unified"
