# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The collection as the property and mutation tests see it: one database, transformed again and again.

This is the only place that knows both the oracle's vocabulary and the collection's.
"""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import asdict
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import connect, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import INFO, WARNING, DataFindings
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies as ModulePolicies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._projection import Projection
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import Check, verify_database

from tests.oracle import database as oracle
from tests.oracle.model import Legacy, Policies
from tests.oracle.model import Projection as OracleProjection
from tests.oracle.schema import NAMINGS, Layout, Shape, quote

# How a database may be set up against whoever believes in defaults; by naming, so that each set is tried.
SCHEMAS = {"camel": "public", "snake": "tenant_a", "mixed": 'We "ird" %s Schéma'}
SETTINGS = {
    "camel": {},
    "snake": {"timezone": "America/St_Johns", "search_path": "tenant_a", "default_transaction_isolation": "serializable"},
    "mixed": {"timezone": "Asia/Kathmandu", "datestyle": "SQL, DMY", "intervalstyle": "iso_8601", "standard_conforming_strings": "off",
              "extra_float_digits": "-10", "bytea_output": "escape", "search_path": "nowhere", "row_security": "off"},
}  # fmt: skip
# Locales under which 'a' < 'B' and 'I' lower-cases to a dotless i, where the server was built with ICU.
ICU_LOCALES = {"camel": None, "snake": "en-US", "mixed": "tr-TR"}

COUNTS = {
    ("identities", "persons"): "identities",
    ("identities", "guests"): "guests",
    ("identities", "joined"): "joined",
    ("identities", "password_kept"): "password_kept_over_different",
    ("identities", "password_adopted"): "password_adopted",
    ("identities", "password_dropped"): "password_dropped",
    ("not_carried", "accounts"): "accounts_not_carried",
    ("not_carried", "sessions"): "sessions_not_carried",
    ("bookings", "by_customer"): "bookings_by_customer",
    ("bookings", "by_email"): "bookings_by_email",
    ("bookings", "by_guest"): "bookings_by_guest",
    ("bookings", "by_email_unverified"): "bookings_joined_unverified",
    ("bookings", "key_differs"): "bookings_differing_email",
    **{("counts", table): table for table in (
        "users", "user_role_assignments", "studio_ownership", "new_accounts", "new_sessions", "new_bookings", "_UserFavorites")},
    ("counts", "quarantine"): "bookings_quarantined",
}  # fmt: skip

BLOCKERS = {
    "unusable_email": "unusable_emails",
    "duplicate_identities": "duplicate_identities",
    "id_collisions": "id_collisions",
    "derived_id_taken": "derived_ids_taken",
    "unresolvable_bookings": "unresolvable_bookings",
}

# Finding -> the oracle's count of the same.
WARNED_COUNTS = {"bookings_joined_unverified": "bookings_joined_unverified", "booking_key_differs": "bookings_differing_email"}

# Everything about the tables that indexes and foreign keys taken down and built again could change.
_CATALOGUE = """
SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid FROM pg_index
WHERE indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = quote_ident(%(schema)s)::regnamespace)
UNION ALL SELECT 'constraint', conrelid::regclass::text || ' ' || conname, pg_get_constraintdef(oid), convalidated
FROM pg_constraint WHERE connamespace = quote_ident(%(schema)s)::regnamespace
UNION ALL SELECT 'trigger', tgrelid::regclass::text || ' ' || tgname, pg_get_triggerdef(oid), tgenabled = 'O'
FROM pg_trigger WHERE NOT tgisinternal"""


class Subject:
    """One database of one shape and spelling, and the collection at work on it."""

    def __init__(self, cluster: Any, name: str, shape: Shape, naming: str) -> None:
        assert naming in NAMINGS
        self.layout = Layout(shape, naming, SCHEMAS[naming])
        self._cluster, self._name = cluster, name
        with contextlib.closing(cluster.connect()) as admin, admin.cursor() as cursor:
            locale = ICU_LOCALES[naming]
            cursor.execute("SELECT EXISTS (SELECT FROM pg_collation WHERE collprovider = 'i' AND collname = 'en-x-icu')")
            icu = f" ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE '{locale}'" if locale and cursor.fetchone()[0] else ""
            cursor.execute(f"CREATE DATABASE {quote(name)} TEMPLATE template0{icu}")
            for setting, value in SETTINGS[naming].items():
                cursor.execute(f"ALTER DATABASE {quote(name)} SET {setting} = %s", (value,))
        self.connection = cluster.connect(name)
        oracle.prepare(self.connection)
        oracle.create_tables(self.connection, self.layout)
        self.made = self.catalogue()

    def close(self) -> None:
        """Close the connection and drop the database."""
        self.connection.close()
        self._cluster.drop_database(self._name)

    def execute(self, statement: str, parameters: Any = None) -> int:
        """Run a statement of the test's own; returns how many rows it touched."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.rowcount

    def write(self, legacy: Legacy) -> None:
        """Start over: forget every row and the journal, and write a legacy database."""
        oracle.empty_tables(self.connection, self.layout)
        self.execute("SET client_min_messages = warning; DROP SCHEMA IF EXISTS unified_user_journal CASCADE")
        oracle.write_legacy(self.connection, legacy, self.layout)

    def connect_as_module(self):
        """Open a session such as a module would open; the caller closes it."""
        cluster = self._cluster
        return connect({"login_unix_socket": cluster.host, "login_port": cluster.port, "login_user": cluster.user, "login_db": self._name})

    @contextlib.contextmanager
    def session(self):
        """A session such as a module would open, for the block."""
        database = self.connect_as_module()
        try:
            yield database
        finally:
            database.close()

    def options(self, policies: Policies) -> Options:
        """The transformation's options for the policies; samples are unlimited and unmasked."""
        chosen = ModulePolicies.from_parameters(asdict(policies))
        return Options(schema=self.layout.schema, policies=chosen, sample_size=1000, mask_pii=False)

    def plan(self, policies: Policies) -> dict[str, Any]:
        """What check mode returns."""
        with self.session() as database:
            return AtomicCopy(database, self.options(policies)).plan()

    def transform(self, policies: Policies) -> dict[str, Any]:
        """What the module returns."""
        with self.session() as database:
            return AtomicCopy(database, self.options(policies)).run()

    def refusal(self, act: Any, policies: Policies) -> dict[str, set]:
        """The blockers that `act` (self.plan or self.transform) refuses with, in the oracle's words."""
        try:
            act(policies)
        except UnifiedUserError as error:
            return {
                BLOCKERS[finding["name"]]: {_as_blocker(finding["name"], sample) for sample in finding["samples"]}
                for finding in error.details.get("findings", [])
                if finding["severity"] == "blocker" and len(finding["samples"]) == finding["count"]
            }
        return {}

    def warnings(self, policies: Policies) -> dict[str, Any]:
        """What preflight warns of or mentions, in the oracle's words. See ``expected_warnings``."""
        with self.session() as database:
            options = self.options(policies)
            schema = AtomicCopy(database, options).schema
            projection = Projection(schema, options.policies, sql.SQL("now()::timestamp"))
            found = DataFindings(database, projection, options.sample_size, options.mask_pii).collect((WARNING, INFO))
        homeless = {tuple(finding.detail.partition(" ")[0].split(".")) for finding in found if finding.name == "column_without_destination"}
        by_name = {finding.name: finding for finding in found}
        counts = {known: by_name[name].count if name in by_name else 0 for name, known in WARNED_COUNTS.items()}
        odd = by_name.get("non_ascii_keys")
        return {"homeless": homeless, "odd_keys": set(odd.samples) if odd else set(), **counts}

    def expected_warnings(self, expected: OracleProjection) -> dict[str, Any]:
        """The same of the oracle: columns by actual names, odd keys, and counts."""
        homeless = {(table, self.layout.actual(table, column)) for table, column in expected.warnings}
        return {"homeless": homeless, "odd_keys": expected.odd_keys, **{name: expected.counts[name] for name in WARNED_COUNTS.values()}}

    def failed_checks(self, policies: Policies) -> dict[str, Check]:
        """What verification, run by itself from two sessions as a module does, finds wrong: name of the check -> check."""
        chosen = ModulePolicies.from_parameters(asdict(policies))
        with self.session() as database:
            found = verify_database(database, self.layout.schema, policies=chosen, mask_pii=False, connect=self.connect_as_module)
        failed = {check.name: check for check in found.checks if not check.passed}
        assert found.passed == (not failed)
        return failed

    def started_at(self) -> int:
        """The run's start, a moment, as TIMESTAMP(3) holds it."""
        with self.session() as database:
            started = _journal.current_run(database)["started_at"]
        micros = (started - datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)) // datetime.timedelta(microseconds=1)
        return (micros + 500) // 1000

    def unified(self) -> OracleProjection:
        """The unified side as it is."""
        return oracle.read_unified(self.connection, self.layout)

    def legacy(self) -> Legacy:
        """The legacy side as it is."""
        return oracle.read_legacy(self.connection, self.layout)

    def is_untouched(self) -> bool:
        """Whether the unified tables are empty and their indexes and constraints as they were made."""
        tables = ("users", "user_role_assignments", "studio_ownership", "new_accounts", "new_sessions", "new_bookings", "_UserFavorites")
        return not any(oracle.read_rows(self.connection, self.layout, table) for table in tables) and self.catalogue() == self.made

    def catalogue(self) -> set:
        """Indexes, constraints and triggers of the application's schema."""
        with self.connection.cursor() as cursor:
            cursor.execute(_CATALOGUE, {"schema": self.layout.schema})
            return set(cursor.fetchall())


def blockers_of(expected: OracleProjection) -> dict[str, set]:
    """The oracle's blockers as far as the collection shows them: of a taken derived id it shows the id."""
    shown = dict(expected.blockers)
    if "derived_ids_taken" in shown:
        shown["derived_ids_taken"] = {derived for _table, _source, derived in shown["derived_ids_taken"]}
    return shown


def differing_counts(result: dict[str, Any], expected: OracleProjection) -> list[str]:
    """Counts that the module returns and the oracle contradicts."""
    found = []
    for (group, name), ours in COUNTS.items():
        returned = result[group].get(name, 0) if (group, name) == ("counts", "quarantine") else result[group][name]
        if returned != expected.counts[ours]:
            found.append(f"{group}.{name} is {returned}, should be {expected.counts[ours]}")
    return found


def _as_blocker(name: str, sample: str) -> Any:
    """A sample of a finding as the oracle has it."""
    if name == "unusable_email":
        return tuple(sample.split(" ", 1))
    if name == "duplicate_identities":
        # Keys may hold anything, also a colon: the rows come after the last one that is followed by a table's name.
        cut = min(i for table in ("studio_owners ", "customers ") if (i := sample.find(": " + table)) >= 0)
        return sample[:cut], frozenset(tuple(row.split(" ", 1)) for row in sample[cut + 2 :].split(", "))
    return sample
