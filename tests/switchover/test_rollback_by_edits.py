# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Going back without a release from before: the one that serves is made anew with its edits taken back."""

from __future__ import annotations

import json
import urllib.request

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options

from tests.switchover.small_host import serving_hosts, small_release
from tests.switchover.test_rollback_application import CONFIRMED, SWITCH, Stand, run_playbook

pytestmark = pytest.mark.one_major

BY_EDITS = (*CONFIRMED, "-e", "rollback_application_by=edits")
# What it answers tells which world it was built for, which route it has, and what it was built with.
SERVER = """
const fs = require("fs");
const port = Number(process.argv[process.argv.indexOf("-p") + 1]);
const world = require("./auth");
const read = (name) => fs.readFileSync(__dirname + "/" + name, "utf8").trim();
require("http").createServer((_request, response) => {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ release: process.env.RELEASE_ID, world, bookings: read("api/bookings/route"), built: read(".next/BUILD") }));
}).listen(port, "127.0.0.1");
"""
EDITS = {
    "app_switchover_import_rewrites": [{"files": ["*.js"], "before": 'require("./auth")', "after": 'require("./auth-unified")', "places": 1}],
    "app_switchover_route_moves": [{"source": "api/bookings-unified", "target": "api/bookings"}],
    "app_switchover_commands": [["sh", "-c", "mkdir .next node_modules && grep -o 'auth[-a-z]*' server.js > .next/BUILD"]],
}
LEGACY = {"world": "legacy", "bookings": "legacy", "built": "auth"}
UNIFIED = {"world": "unified", "bookings": "unified", "built": "auth-unified"}


def answer(host) -> dict:
    """What the release that serves says of itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{host.port}/api/health", timeout=5) as found:
        return json.load(found)


@pytest.fixture
def stand(cluster, templates, tmp_path):
    """One host on which the new release serves, and nothing else is kept."""
    with templates.database("reference") as name, serving_hosts(tmp_path, ("app1",)) as hosts:
        stand = Stand(cluster, name, hosts, tmp_path)
        for world, suffix in (("legacy", ""), ("unified", "-unified")):
            (stand.release / f"auth{suffix}.js").write_text(f'module.exports = "{world}";\n')
            (stand.release / "api" / f"bookings{suffix}").mkdir(parents=True)
            (stand.release / "api" / f"bookings{suffix}" / "route").write_text(world)
        small_release(stand.release, SERVER)
        with stand.session() as database:
            AtomicCopy(database, Options()).run()
        stand.sync("both")
        yield stand


def forward(stand, release: str = "new") -> None:
    done = run_playbook(SWITCH, stand.inventory(app_switchover_release=release, app_switchover_directory=str(stand.release), **EDITS), timeout=400)
    assert done.returncode == 0 and answer(stand.hosts[0]) == {"release": release, **UNIFIED}, done.stdout


def test_the_edits_are_taken_back_and_made_again(stand):
    (host,) = stand.hosts
    forward(stand)
    assert stand.book("while-new")

    # What cannot be taken back is refused by its name before anything is touched.
    nothing_left = [*EDITS["app_switchover_import_rewrites"], {"files": ["auth.js"], "before": "x", "after": ""}]
    status, words = stand.back(*BY_EDITS, **{**EDITS, "app_switchover_import_rewrites": nothing_left})
    assert status != 0 and 'the rewrite of "x" to "" (auth.js) cannot be: it leaves nothing to look for' in words, words
    assert "app1, and nothing was changed on any host" in words
    assert host.serving() == "new" and sorted(path.name for path in (host.root / "releases").iterdir()) == ["new", "old"]

    # One that cannot be built leaves everything as it was.
    status, words = stand.back(*BY_EDITS, **{**EDITS, "app_switchover_commands": [["false"]]})
    assert status != 0 and 'to release new-back, in step "Build it"' in words and "Release new serves." in words, words
    assert "-e rollback_application_by=edits` again" in words and answer(host) == {"release": "new", **UNIFIED}
    assert not (host.root / ".switchover").is_symlink()

    (host.root / "releases" / "new" / "node_modules" / "left.js").write_text("")
    status, words = stand.back(*BY_EDITS, **EDITS)
    assert status == 0 and answer(host) == {"release": "new-back", **LEGACY}, words
    assert "app1 new -> new-back" in words and "1 of 1 hosts went back to a release without its edits; everything written since" in words
    assert not (host.root / "releases" / "new-back" / "node_modules" / "left.js").exists()
    assert {name: host.linked(name) for name in ("current", "previous")} == {"current": "new-back", "previous": "new-back"}

    # A run that was killed before it was done is continued.
    (host.root / ".switchover").symlink_to("back")
    status, words = stand.back(*BY_EDITS, **EDITS)
    assert status == 0 and "app1 new-back -> new-back" in words and not (host.root / ".switchover").is_symlink(), words
    status, words = stand.back(*BY_EDITS, "--check", **EDITS)
    assert status == 0 and "Nothing to do: 1 hosts serve a release without its edits already" in words, words
    forward(stand)
    assert host.linked("previous") == "new-back" and stand.book("while-new-again")
