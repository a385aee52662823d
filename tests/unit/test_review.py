# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The review of migrations: each rule finds what it is for, and keeps silent about the rest."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _review
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._review import Expectations, Review
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._review_directory import accept, default_expectations, passed, review_directory

from tests.app.migration_history import MIGRATIONS, UNIFIED_SUFFIX
from tests.module_process import run_module

BEFORE = """
CREATE TABLE "bookings" ("id" TEXT NOT NULL, "note" TEXT, CONSTRAINT "bookings_pkey" PRIMARY KEY ("id"));
CREATE TABLE "studios" ("id" TEXT NOT NULL, CONSTRAINT "studios_pkey" PRIMARY KEY ("id"));
"""
NEW = 'CREATE TABLE "users" ("id" TEXT NOT NULL, "studioId" TEXT, "homeId" TEXT NOT NULL, CONSTRAINT "users_pkey" PRIMARY KEY ("id"));\n'

# Statement that a migration adds to NEW, the rule that finds it, the object named, and the lock.
FOUND = [
    ('DROP TABLE "bookings";', "drops", "bookings", "ACCESS EXCLUSIVE"),
    ('DROP TYPE "Status";', "drops", "Status", "ACCESS EXCLUSIVE"),
    ('DROP INDEX "bookings_x";', "drops", "bookings_x", "ACCESS EXCLUSIVE"),
    ('ALTER TABLE "bookings" DROP COLUMN "note";', "drops", "bookings.note", "ACCESS EXCLUSIVE"),
    ('ALTER TABLE "bookings" DROP CONSTRAINT "bookings_pkey";', "drops", "bookings.bookings_pkey", "ACCESS EXCLUSIVE"),
    ('ALTER TABLE "bookings" ALTER COLUMN "note" TYPE VARCHAR(9);', "alters_existing", "bookings.note", "ACCESS EXCLUSIVE"),
    ('ALTER TABLE "bookings" ALTER COLUMN "note" SET NOT NULL;', "alters_existing", "bookings.note", "ACCESS EXCLUSIVE"),
    ('ALTER TABLE "bookings" ADD COLUMN "userId" TEXT;', "alters_existing", "bookings.userId", "ACCESS EXCLUSIVE"),
    ('ALTER TABLE "bookings" ALTER COLUMN "note" SET DEFAULT \'x\';', "alters_existing", "bookings.note", "ACCESS EXCLUSIVE"),
    ('ALTER TABLE "bookings" RENAME TO "old_bookings";', "alters_existing", "bookings", "ACCESS EXCLUSIVE"),
    ('ALTER TABLE "bookings" RENAME COLUMN "note" TO "remark";', "alters_existing", "bookings.note", "ACCESS EXCLUSIVE"),
    ('ALTER TYPE "Status" RENAME VALUE \'A\' TO \'B\';', "alters_existing", "Status", ""),
    ('ALTER TYPE "Status" ADD VALUE \'B\';', "locks_existing", "Status", ""),
    ('CREATE INDEX "bookings_note_idx" ON "bookings"("note");', "locks_existing", "bookings.bookings_note_idx", "SHARE"),
    ('ALTER TABLE "users" ADD CONSTRAINT "k" FOREIGN KEY ("studioId") REFERENCES "studios"("id");', "locks_existing", "users → studios", "SHARE ROW EXCLUSIVE"),
    ('LOCK TABLE "bookings";', "locks_existing", "bookings", "as named"),
    ('TRUNCATE "bookings";', "writes_existing", "bookings", "ACCESS EXCLUSIVE"),
    ('UPDATE "bookings" SET "note" = \'\';', "writes_existing", "bookings", "ROW EXCLUSIVE"),
    ('DELETE FROM "bookings";', "writes_existing", "bookings", "ROW EXCLUSIVE"),
    ('INSERT INTO "users" ("id", "homeId") SELECT "id", "id" FROM "bookings";', "writes_new", "users", ""),
    (
        'ALTER TABLE "users" ADD CONSTRAINT "k" FOREIGN KEY ("homeId") REFERENCES "studios"("id") ON DELETE SET NULL;',
        "set_null_on_not_null", "users.homeId", "",
    ),
    ('CREATE UNIQUE INDEX "u" ON "users"("homeId", "studioId");', "unique_with_nulls", "users.u", ""),
    ('ALTER TABLE "users" ADD CONSTRAINT "k" FOREIGN KEY ("studioId") REFERENCES "studios"("id");', "unindexed_foreign_key", "users.studioId", ""),
    (f'CREATE INDEX "{"i" * 64}" ON "users"("homeId");', "long_name", "i" * 64, ""),
    (f'CREATE INDEX "{"ü" * 32}" ON "users"("homeId");', "long_name", "ü" * 32, ""),
    ('CREATE INDEX CONCURRENTLY "users_home" ON "users"("homeId");', "outside_transaction", "users_home", ""),
    ("COMMIT;", "outside_transaction", "", ""),
    ("VACUUM;", "outside_transaction", "", ""),
    ("CREATE VIEW v AS SELECT 1;", "not_understood", "View", ""),
    ("DO $$ BEGIN NULL; END $$;", "not_understood", "Do", ""),
    ("CREATE TABL x;", "syntax", "", ""),
]  # fmt: skip


def judge(statement: str, expectations: Expectations | None = None, severities: dict | None = None) -> list:
    review = Review(expectations or Expectations(), severities)
    review.read("1_before", BEFORE, judge=False)
    review.read("2_unified", f"-- ü\n{NEW}-- CreateSomething\n{statement}", judge=True)
    return review.finish()


@pytest.mark.parametrize(("statement", "rule", "target", "lock"), FOUND, ids=[f"{case[1]}-{number}" for number, case in enumerate(FOUND)])
def test_each_rule_finds_what_it_is_for(statement, rule, target, lock):
    found = [finding for finding in judge(statement) if finding.rule == rule]
    assert [(finding.object, finding.lock, finding.line, finding.migration) for finding in found] == [(target, lock, 4, "2_unified")]
    assert found[0].severity == _review.RULES[rule]
    assert judge(statement, severities={rule: "off"}) == [finding for finding in judge(statement) if finding.rule != rule]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TYPE \"UserRole\" AS ENUM ('A');",
        'CREATE INDEX "users_homeId_idx" ON "users"("homeId");',
        'CREATE UNIQUE INDEX "users_homeId_key" ON "users"("homeId");',
        'CREATE UNIQUE INDEX "u" ON "users"("homeId", "studioId") NULLS NOT DISTINCT;',
        'ALTER TABLE "users" ADD COLUMN "extra" TEXT;',
        'CREATE INDEX "i" ON "users"("homeId"); ALTER TABLE "users" ADD CONSTRAINT "k" FOREIGN KEY ("homeId") REFERENCES "users"("id") ON DELETE CASCADE;',
        f'CREATE INDEX "{"i" * 63}" ON "users"("homeId");',
    ],
)
def test_what_only_adds_is_not_found(statement):
    assert judge(statement) == []


def test_the_four_checks_of_the_guide():
    expected = Expectations(("users", "new_bookings"), ("bookings", "studios"), (("users", "homeId", "studios"), ("users", "studioId", "studios")))
    keyed = 'CREATE INDEX a ON "users"("homeId"); ALTER TABLE "users" ADD CONSTRAINT "k" FOREIGN KEY ("homeId") REFERENCES "studios"("id");'
    found = {(finding.rule, finding.object) for finding in judge(f'{keyed} CREATE TABLE "new_bookings" (note text); DROP TABLE "bookings";', expected)}
    assert {("foreign_keys_defined", "users.studioId"), ("indexes_created", "new_bookings"), ("old_tables_kept", "bookings")} < found
    assert ("foreign_keys_defined", "users.homeId") not in found and ("tables_created", "users") not in found
    assert ("tables_created", "new_bookings") in {(finding.rule, finding.object) for finding in judge("", expected)}


def test_the_application_s_own_migration():
    """The contract's contradiction and its trap are reported, and nothing else is an error."""
    findings, reviewed = review_directory(str(MIGRATIONS), None, default_expectations(), {})
    assert reviewed[0].endswith(UNIFIED_SUFFIX)
    assert passed(findings)
    named = {(finding.rule, finding.object) for finding in findings}
    assert ("set_null_on_not_null", "new_bookings.customerId") in named
    assert ("unique_with_nulls", "user_role_assignments.user_role_assignments_userId_role_studioId_key") in named
    assert ("locks_existing", "new_bookings → studios") in named


def test_accepting_takes_a_finding_of_that_rule_and_object_alone():
    findings = judge('DROP TABLE "bookings"; DROP TABLE "studios";')
    assert not passed(findings)
    reason = {"rule": "drops", "object": "bookings", "reason": "empty for years"}
    assert accept(findings, [reason, {**reason, "object": "nothing"}]) == [{**reason, "object": "nothing"}]
    assert not passed(findings)
    assert accept(findings, [{**reason, "object": "studios"}]) == [] and passed(findings)


def test_unknown_rules_and_severities_are_refused():
    with pytest.raises(UnifiedUserError, match="no such rule"):
        Review(Expectations(), {"drop": "error"})
    with pytest.raises(UnifiedUserError, match="is none"):
        Review(Expectations(), {"drops": "fatal"})


@pytest.fixture
def migrations(tmp_path):
    """A directory of two migrations, the second of which drops a table."""
    for name, text in (("1_before", BEFORE), ("2_unified", NEW + 'DROP TABLE "bookings";')):
        (tmp_path / "migrations" / name).mkdir(parents=True)
        (tmp_path / "migrations" / name / "migration.sql").write_text(text, encoding="utf-8")
    return tmp_path / "migrations"


def test_module_fails_for_errors_unless_they_are_accepted(migrations):
    options = {"path": str(migrations), "expected_tables": [], "squawk": ""}
    failed = run_module("migration_review", options)
    assert failed["failed"] and "old_tables_kept bookings" in failed["msg"] and failed["findings"][0]["severity"] == "error"
    assert not run_module("migration_review", {**options, "fail_on_error": False})["passed"]
    reasons = [{"rule": rule, "object": "bookings", "reason": "empty for years"} for rule in ("drops", "old_tables_kept")]
    assert run_module("migration_review", {**options, "accepted": reasons})["passed"]
    assert run_module("migration_review", {**options, "migrations": ["1_before"]})["passed"]


def test_what_cannot_be_read_is_named(migrations):
    (migrations / "3_empty").mkdir()
    failed = run_module("migration_review", {"path": str(migrations)})
    assert failed["failed"] and "3_empty" in failed["msg"] and "migration.sql in UTF-8" in failed["msg"]
    assert "no such directory" in run_module("migration_review", {"path": str(migrations), "migrations": ["9"]})["msg"]
    assert "there are none" in run_module("migration_review", {"path": str(migrations / "nowhere")})["msg"]


def test_findings_of_squawk_are_merged(migrations):
    squawk = shutil.which("squawk", path=str(Path(sys.executable).parent))
    found = run_module("migration_review", {"path": str(migrations), "expected_tables": [], "squawk": squawk, "fail_on_error": False})["findings"]
    assert [(item["line"], item["severity"]) for item in found if item["rule"] == "squawk-ban-drop-table"] == [(2, "info")]
    excluded = {"path": str(migrations), "squawk": squawk, "fail_on_error": False, "squawk_exclude": ["ban-drop-table"]}
    assert "squawk-ban-drop-table" not in [item["rule"] for item in run_module("migration_review", excluded)["findings"]]
    assert "Repair squawk" in run_module("migration_review", {"path": str(migrations), "squawk": sys.executable})["msg"]
