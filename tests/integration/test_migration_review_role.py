# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The role migration_review as an operator runs it: over what is pending, with findings accepted and severities changed."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from tests.app.migration_history import MIGRATIONS, unified_migration
from tests.module_process import connection_options
from tests.playbook_process import changed, inventory, run_playbook

UNIFIED = unified_migration().name
LATER = "20251201000000_later"

pytestmark = pytest.mark.one_major


@pytest.fixture
def release(tmp_path):
    """The migrations of a release on another host."""
    shutil.copytree(MIGRATIONS, tmp_path / "release" / "prisma" / "migrations")
    return tmp_path / "release"


@pytest.fixture
def review(cluster, tmp_path, release):
    """Runs the role against a database: review(dbname, variable=value); returns the process, its words and its step."""
    facts, playbook = tmp_path / "facts.json", tmp_path / "review.yml"
    record = {
        "name": "Keep what the role told",
        "ansible.builtin.copy": {"content": "{{ unified_user_steps | default([]) }}", "dest": str(facts)},
        "check_mode": False,
        "changed_when": False,
    }
    review = {"name": "Review", "ansible.builtin.import_role": {"name": "rnltlabs.unified_user.migration_review"}}
    tasks = [{"name": "Review and record", "block": [review], "always": [record]}]
    playbook.write_text(yaml.safe_dump([{"name": "Review", "hosts": "database", "gather_facts": False, "tasks": tasks}]))

    def run(dbname, *arguments, **variables):
        facts.unlink(missing_ok=True)
        connection = {f"unified_user_{name}": value for name, value in connection_options(cluster, dbname).items()}
        hosts = inventory(tmp_path, {**connection, "schema_deploy_engine": "native", "schema_deploy_release_directory": str(release), **variables})
        listed = json.loads(hosts.read_text())
        listed["all"]["children"]["app"] = {"hosts": {"app1": listed["all"]["children"]["database"]["hosts"]["localhost"]}}
        hosts.write_text(json.dumps(listed))
        done = run_playbook(playbook, hosts, *arguments)
        return done, " ".join(done.stdout.split()), json.loads(facts.read_text())[0]

    return run


def add_migration(release, script):
    directory = release / "prisma" / "migrations" / LATER
    directory.mkdir()
    (directory / "migration.sql").write_text(script)


def test_what_is_pending_is_judged(review, legacy_database):
    done, words, step = review(legacy_database, "--check")
    assert (done.returncode, changed(done)) == (0, 0), done.stdout
    assert f"Reviewed: {UNIFIED}. Errors: 0, warnings: " in words
    assert "WARNING set_null_on_not_null new_bookings.customerId: NOT NULL, and ON DELETE SET NULL" in words
    assert "WARNING locks_existing" in words and "takes SHARE ROW EXCLUSIVE" in words
    assert step["step"] == "migration_review" and step["result"] == "ok" and step["data"]["reviewed"] == [UNIFIED]
    assert {finding["rule"] for finding in step["data"]["findings"]} >= {"set_null_on_not_null", "locks_existing"}


def test_an_error_stops_until_it_is_accepted_with_a_reason(review, legacy_database, release):
    add_migration(release, 'ALTER TABLE "studios" DROP COLUMN "latitude";')
    done, words, step = review(legacy_database)
    assert done.returncode != 0 and step["result"] == "failed"
    assert "ERROR drops studios.latitude: a column is dropped, with its values" in words
    assert "Failed to pass the review of the pending migrations: drops studios.latitude (a column is dropped, with its values)" in words

    accepted = [
        {"rule": "drops", "object": "studios.latitude", "reason": "Nobody reads it since May."},
        {"rule": "drops", "object": "studios.longitude", "reason": "Misspelt."},
    ]
    done, words, step = review(legacy_database, migration_review_accepted=accepted)
    assert done.returncode == 0 and step["result"] == "ok", done.stdout
    assert "ACCEPTED drops studios.latitude" in words and "because: Nobody reads it since May." in words
    assert "Accepted, but not found: drops studios.longitude." in words
    assert "accepted: 1 in 2 migrations, accepted but not found: 1" in step["detail"]
    assert step["data"]["unused_accepted"] == [accepted[1]]


def test_severities_are_the_operator_s(review, legacy_database):
    done, words, step = review(legacy_database, migration_review_severities={"set_null_on_not_null": "error", "locks_existing": "off"})
    assert done.returncode != 0 and step["result"] == "failed"
    assert "ERROR set_null_on_not_null" in words and "locks_existing" not in words


def test_with_nothing_pending_it_says_so(review, unified_database, release):
    done, _words, step = review(unified_database)
    assert done.returncode == 0 and (step["result"], step["detail"]) == ("skipped", "nothing is pending"), done.stdout
    add_migration(release, 'CREATE TABLE "news" ("id" TEXT NOT NULL, CONSTRAINT "news_pkey" PRIMARY KEY ("id"));')
    done, words, step = review(unified_database)
    assert done.returncode == 0 and "Errors: 0" in words, "what the database has already is not expected of a later migration"
    assert step["data"]["reviewed"] == [LATER]
