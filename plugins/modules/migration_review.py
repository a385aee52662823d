#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Judge the SQL of schema migrations before any server sees it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: migration_review
short_description: Judge the SQL of schema migrations before any server sees it
version_added: 0.1.0
description:
  - Reads the migrations of a directory with PostgreSQL's own parser, and judges those named.
  - Before cut-over a migration may only add. What drops, alters, rewrites, locks or fills what the running release uses is
    found, with the lock it takes and the safe form.
  - The four checks of the migration guide have names of their own, C(tables_created), C(old_tables_kept), C(indexes_created)
    and C(foreign_keys_defined).
  - No server is needed and nothing is changed.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.attributes.reads_only
requirements:
  - pglast >= 7 for the Python that runs the module
options:
  path:
    description:
      - The directory of migrations, each a directory with a C(migration.sql).
    type: path
    required: true
  migrations:
    description:
      - Names of the migrations to judge. The others are read to know what exists.
      - Without it the newest one is judged.
    type: list
    elements: str
  expected_tables:
    description:
      - Tables that the judged migrations must create. Without it those of the unified model, and its foreign keys with them.
      - An empty list for migrations of other purposes.
    type: list
    elements: str
  kept_tables:
    description:
      - Tables that must not be dropped. Without it those that the legacy model uses.
    type: list
    elements: str
  severities:
    description:
      - Severity by rule (V(error), V(warning), V(info) or V(off)), over the defaults.
    type: dict
    default: {}
  accepted:
    description:
      - Findings that somebody has looked at and accepts. They stay in the list, and do not fail.
    type: list
    elements: dict
    default: []
    suboptions:
      rule:
        description: The finding's rule.
        type: str
        required: true
      object:
        description: The finding's object.
        type: str
        required: true
      reason:
        description: Why it is accepted.
        type: str
        required: true
  squawk:
    description:
      - Path of the linter squawk, whose findings are merged as rules C(squawk-<name>) of severity V(info).
      - Without it the one in E(PATH) is taken, if there is one. Empty for none.
    type: str
  squawk_exclude:
    description:
      - Rules of squawk to leave out. The default are those that speak of how Prisma writes SQL, and of timeouts, which the deployment sets.
    type: list
    elements: str
    default:
      - prefer-robust-stmts
      - prefer-timestamp-tz
      - prefer-bigint-over-int
      - require-lock-timeout
      - require-statement-timeout
  fail_on_error:
    description:
      - Whether an error that nobody accepted fails the module.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Judge the migration that brings the unified model
  rnltlabs.unified_user.migration_review:
    path: prisma/migrations
    migrations: [20251101120000_add_unified_user_model_and_rbac]
    accepted:
      - rule: set_null_on_not_null
        object: new_bookings.customerId
        reason: Known; people with bookings are erased after their bookings.
  delegate_to: localhost
"""

RETURN = r"""
findings:
  description: What there is to know, the gravest first.
  returned: always
  type: list
  elements: dict
  contains:
    rule:
      description: The rule.
      type: str
    severity:
      description: One of V(error), V(warning) and V(info).
      type: str
    migration:
      description: The migration. Empty for findings about all of them.
      type: str
    line:
      description: Where the statement starts. 0 for findings about the whole.
      type: int
    object:
      description: Table, index, constraint or type.
      type: str
    detail:
      description: One sentence.
      type: str
    lock:
      description: The strongest lock taken on a table that the application uses.
      type: str
    safe_form:
      description: How to do it safely.
      type: str
    accepted:
      description: The reason for accepting it.
      type: str
passed:
  description: Whether no error is left that nobody accepted.
  returned: always
  type: bool
reviewed:
  description: The migrations that were judged.
  returned: always
  type: list
  elements: str
unused_accepted:
  description: Entries of O(accepted) that fit no finding.
  returned: always
  type: list
  elements: dict
duration_ms:
  description: Duration of the whole, in milliseconds.
  returned: always
  type: int
"""

import shutil
import sys
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _review, _review_directory
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError


def review(parameters: dict) -> dict:
    """Judge the migrations and return what the module returns."""
    begun = time.monotonic()
    defaults = _review_directory.default_expectations()
    expected = parameters["expected_tables"]
    expectations = _review.Expectations(
        defaults.tables if expected is None else tuple(expected),
        defaults.kept if parameters["kept_tables"] is None else tuple(parameters["kept_tables"]),
        defaults.references if expected is None else tuple(key for key in defaults.references if key[0] in expected),
    )
    squawk = shutil.which("squawk") if parameters["squawk"] is None else parameters["squawk"]
    findings, reviewed = _review_directory.review_directory(
        parameters["path"], parameters["migrations"], expectations, parameters["severities"], squawk, parameters["squawk_exclude"]
    )
    unused = _review_directory.accept(findings, parameters["accepted"])
    return {
        "changed": False,
        "passed": _review_directory.passed(findings),
        "reviewed": reviewed,
        "findings": [finding.as_dict() for finding in findings],
        "unused_accepted": unused,
        "duration_ms": round((time.monotonic() - begun) * 1000),
    }


def main() -> None:
    """Run the module."""
    accepted = {name: {"type": "str", "required": True} for name in ("rule", "object", "reason")}
    exclude = ["prefer-robust-stmts", "prefer-timestamp-tz", "prefer-bigint-over-int", "require-lock-timeout", "require-statement-timeout"]
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "migrations": {"type": "list", "elements": "str"},
            "expected_tables": {"type": "list", "elements": "str"},
            "kept_tables": {"type": "list", "elements": "str"},
            "severities": {"type": "dict", "default": {}},
            "accepted": {"type": "list", "elements": "dict", "default": [], "options": accepted},
            "squawk": {"type": "str"},
            "squawk_exclude": {"type": "list", "elements": "str", "default": exclude},
            "fail_on_error": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    if _review.pglast is None:
        module.fail_json(
            msg=f"Failed to load PostgreSQL's parser: the Python library pglast is missing for {sys.executable}. "
            "Install pglast there, or run this task where it is (delegate_to: localhost)."
        )
    try:
        result = review(module.params)
    except UnifiedUserError as error:
        module.fail_json(msg=str(error), **error.details)
    if not result["passed"] and module.params["fail_on_error"]:
        module.fail_json(msg=_review_directory.summary(result["findings"]), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
