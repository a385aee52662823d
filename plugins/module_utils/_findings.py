# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the data itself has to say before it is copied: the blockers, warnings and counts of the contract, sections 1 to 3."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Callable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._projection import OWNER_SIDE, Projection
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import identity_key, is_usable, masked_email

BLOCKER = "blocker"
WARNING = "warning"
INFO = "info"
SEVERITIES = (BLOCKER, WARNING, INFO)


@dataclass(frozen=True)
class Finding:
    """One thing found before the migration.

    Attributes:
        name: stable name, snake_case.
        severity: ``blocker``, ``warning`` or ``info``.
        count: how many rows, keys or objects.
        detail: one sentence.
        hint: a command to run or a variable to set.
        samples: a few of them, e-mails masked.
    """

    name: str
    severity: str
    count: int
    detail: str
    hint: str
    samples: list[str] = field(default_factory=list)

    def as_dict(self) -> dict:
        """Return the finding as a module returns it."""
        return asdict(self)


@dataclass(frozen=True)
class _Question:
    """A finding to look for: its select returns ``label`` rows, one for each thing found."""

    name: str
    severity: str
    detail: str
    hint: str
    select: Callable[[], object]


def blocked(findings: list[Finding]) -> bool:
    """Return whether any of the findings is a blocker."""
    return any(finding.severity == BLOCKER for finding in findings)


def refuse(action: str, findings: list[Finding]) -> None:
    """Raise for the blockers among the findings.

    Raises:
        UnifiedUserError: names each blocker with its count, and the way out of the first.
    """
    blockers = [finding for finding in findings if finding.severity == BLOCKER]
    if blockers:
        causes = "; ".join(
            f"{finding.detail} ({finding.count}: {', '.join(finding.samples)})" if finding.samples else f"{finding.detail} ({finding.count})"
            for finding in blockers
        )
        raise UnifiedUserError(action, causes, " ".join(dict.fromkeys(finding.hint for finding in blockers)),
                               findings=[finding.as_dict() for finding in blockers], blocked=True)


def schema_findings(schema: Schema) -> list[Finding]:
    """Return the findings of resolving tables and columns; with a blocker among them the data cannot be asked."""
    return [
        Finding(
            "missing_table" if not problem.column else "unfit_column",
            problem.severity, 1,
            f"{problem.table}.{problem.column}: {problem.cause}" if problem.column else problem.cause,
            "Run the role schema_deploy, or set unified_user_schema or unified_user_mapping",
            [f"{problem.table}.{problem.column}" if problem.column else problem.table],
        )
        for problem in schema.problems
    ]


#: Legacy table -> the unified table its columns go to.
_DESTINATIONS = {
    **dict.fromkeys(_mapping.PEOPLE, "users"),
    **{source: target for target, (source, unused) in _mapping.ROW_COPIES.items()},
}


class DataFindings:
    """Asks the legacy rows, in one statement, for everything that stops or should be known.

    Args:
        database: an open session.
        projection: of the schema and policies in force.
        sample_size: how many samples a finding shows at most.
        mask_pii: whether e-mails are masked.
    """

    def __init__(self, database: Database, projection: Projection, sample_size: int = 5, mask_pii: bool = True) -> None:
        self.database = database
        self.projection = projection
        self.schema = projection.schema
        self.policies = projection.policies
        self.sample_size = sample_size
        self.mask_pii = mask_pii

    def collect(self, severities=SEVERITIES, prepared: bool = False) -> list[Finding]:
        """Ask, and return what was found; what was not found is not in the list.

        Args:
            severities: which findings to look for.
            prepared: whether the temporary tables ``member`` and ``guest`` are there already.
        """
        questions = [question for question in self._questions() if question.severity in severities]
        if not questions:
            return []
        selects = sql.SQL(" UNION ALL ").join(
            sql.SQL("SELECT {} AS number, count(*) AS count, (array_agg(q.label ORDER BY q.label))[1:{}] AS samples FROM ({}) AS q").format(
                sql.Literal(number), sql.Literal(self.sample_size), question.select()
            )
            for number, question in enumerate(questions)
        )
        if not prepared:
            selects = sql.SQL("WITH member AS MATERIALIZED ({}), guest AS MATERIALIZED ({}) {}").format(
                self.projection.member(), self.projection.guest(), selects
            )
        found = {row["number"]: row for row in self.database.rows(selects) if row["count"]}
        return [
            Finding(question.name, question.severity, found[number]["count"], question.detail, question.hint, found[number]["samples"] or [])
            for number, question in enumerate(questions)
            if number in found
        ]

    def _questions(self) -> list[_Question]:
        policies = self.policies
        questions = [
            _Question("unusable_email", BLOCKER, "owners or customers without a usable e-mail",
                      "Give each of them an e-mail with an @, or delete it; they are: "
                      + self._command("{select}", select=self._unusable_emails()),
                      self._unusable_emails),
            _Question("duplicate_identities", BLOCKER if policies.duplicate_identities == "fail" else INFO,
                      "identities with two or more rows in one table",
                      "Set unified_user_duplicate_identities: merge to join them in survivor order, or merge the rows by hand",
                      self._duplicates),
            _Question("id_collisions", BLOCKER if policies.id_collisions == "fail" else INFO,
                      "an owner and a customer of different identities have one id",
                      "Set unified_user_id_collisions: rekey to give the customer a derived id", self._collisions),
            _Question("derived_id_taken", BLOCKER, "derived ids that another row has already",
                      "Give the row that has it another id, foreign keys follow: " + self._command(
                          "UPDATE {customers} SET {customers.id} = 'another' WHERE {customers.id} = 'sample', or the same in {studio_owners}"),
                      self._taken),
            _Question("unresolvable_bookings", BLOCKER if policies.unresolvable_bookings == "fail" else WARNING,
                      "bookings with neither a customerId nor a usable e-mail",
                      "Set unified_user_unresolvable_bookings: quarantine to keep them in the journal, or give them an e-mail",
                      self._unresolvable),
            _Question("non_ascii_keys", WARNING, "identity keys with a character outside ! to ~; two such spellings stay two people",
                      "Correct those that are misspelt; they are: " + self._command(
                          "SELECT {studio_owners.id}, {studio_owners.email} FROM {studio_owners} WHERE {studio_owners.email} ~ '[^!-~]'"
                          " UNION ALL SELECT {customers.id}, {customers.email} FROM {customers} WHERE {customers.email} ~ '[^!-~]'"),
                      self._non_ascii),
            _Question("bookings_joined_unverified", WARNING, "bookings tied by e-mail to an account whose e-mail was never verified",
                      "Have them verify their e-mail first if health data is among it; the addresses are: "
                      + self._command("SELECT DISTINCT {bookings.customerEmail} FROM {bookings} WHERE {bookings.customerId} IS NULL"),
                      self._joined_unverified),
            _Question("booking_key_differs", INFO, "bookings whose e-mail is not that of their customer; the customerId wins",
                      "Nothing to do: customerEmail stays in the booking as it is", self._key_differs),
        ]
        questions += [self._null_question(*pair) for pair in self._nullable_pairs()]
        questions += [self._lost_question(*column) for column in self.schema.without_destination()]
        return questions

    def _command(self, template: str, **parts) -> str:
        """Return a command for a hint, with this database's names."""
        return self.schema.compose(template, **parts).as_string(self.database.connection)

    def _masked(self, email):
        return masked_email(email, self.mask_pii)

    def _key(self, table: str, column: str, alias: str):
        qualified = sql.SQL("{}.{}").format(sql.Identifier(alias), self.schema.column(table, column))
        return identity_key(qualified, self.policies.email_match)

    def _unusable_emails(self):
        return sql.SQL(" UNION ALL ").join(
            self.schema.compose(
                "SELECT {label} || ' ' || t.{people.id} AS label FROM {people} AS t WHERE NOT {usable}",
                people=table,
                label=sql.Literal(self.schema[table].name),
                usable=is_usable(self.schema.compose("t.{people.email}", people=table)),
            )
            for table in _mapping.PEOPLE
        )

    def _duplicates(self):
        return self.schema.compose(
            "SELECT {key} || ': ' || string_agg(CASE m.side WHEN {owner} THEN {owners} ELSE {customers} END || ' ' || m.source_id, ', '"
            " ORDER BY m.position) AS label FROM member AS m WHERE m.size > 1 GROUP BY m.key"
            " HAVING count(*) > count(DISTINCT m.side)",
            key=self._masked(sql.SQL("m.key")),
            owner=sql.Literal(OWNER_SIDE),
            owners=sql.Literal(self.schema["studio_owners"].name), customers=sql.Literal(self.schema["customers"].name),
        )

    def _colliding(self):
        return self.schema.compose(
            "{studio_owners} AS o JOIN {customers} AS c ON c.{customers.id} = o.{studio_owners.id} WHERE {left} <> {right}",
            left=self._key("studio_owners", "email", "o"), right=self._key("customers", "email", "c"),
        )

    def _collisions(self):
        return self.schema.compose("SELECT c.{customers.id} AS label FROM {colliding}", colliding=self._colliding())

    def _taken(self):
        """Derived ids of rekeyed customers and of guests that an owner, a customer or another derived id has."""
        derived = sql.SQL("SELECT g.user_id AS id FROM guest AS g")
        if self.policies.id_collisions == "rekey":
            derived = self.schema.compose(
                "{guests} UNION ALL SELECT {id} FROM {colliding}",
                guests=derived, id=Projection.rekeyed_id(self.schema.compose("c.{customers.id}")), colliding=self._colliding(),
            )
        return self.schema.compose(
            # Each by itself, so that it can be a join.
            "(SELECT d.id AS label FROM ({derived}) AS d WHERE EXISTS (SELECT FROM {studio_owners} AS o WHERE o.{studio_owners.id} = d.id)"
            " UNION SELECT d.id FROM ({derived}) AS d WHERE EXISTS (SELECT FROM {customers} AS c WHERE c.{customers.id} = d.id))"
            " UNION ALL SELECT d.id FROM ({derived}) AS d GROUP BY d.id HAVING count(*) > 1",
            derived=derived,
        )

    def _unresolvable(self):
        return self.schema.compose(
            "SELECT t.{bookings.id} AS label FROM {bookings} AS t WHERE t.{bookings.customerId} IS NULL AND NOT {usable}",
            usable=is_usable(self.schema.compose("t.{bookings.customerEmail}")),
        )

    def _non_ascii(self):
        return self.schema.compose(
            "SELECT {key} AS label FROM (SELECT key FROM member WHERE position = 1 UNION ALL SELECT key FROM guest) AS k"
            " WHERE k.key COLLATE \"C\" ~ '[^!-~]'",
            key=self._masked(sql.SQL("k.key")),
        )

    def _joined_unverified(self):
        return self.schema.compose(
            "SELECT t.{bookings.id} AS label FROM {bookings} AS t"
            " JOIN member AS m ON m.position = 1 AND NOT m.any_verified AND m.key = {key}"
            " WHERE t.{bookings.customerId} IS NULL",
            key=self._key("bookings", "customerEmail", "t"),
        )

    def _key_differs(self):
        return self.schema.compose(
            "SELECT t.{bookings.id} AS label FROM {bookings} AS t JOIN {customers} AS c ON c.{customers.id} = t.{bookings.customerId}"
            " WHERE {left} <> {right}",
            left=self._key("bookings", "customerEmail", "t"), right=self._key("customers", "email", "c"),
        )

    def _nullable_pairs(self):
        """Legacy columns that may be NULL and whose unified column may not."""
        pairs = [(source, target, self.schema.row_copy(target)) for target, (source, unused) in _mapping.ROW_COPIES.items()]
        for source, target, columns in pairs:
            for right, left in columns:
                if self.schema[target].columns[right].not_null and not self.schema[source].columns[left].not_null:
                    yield source, left, self.schema[target].name
        for column in self.schema.person_columns():
            if column.target.not_null:
                for table, left in column.sources.items():
                    if not self.schema[table].columns[left].not_null:
                        yield table, left, self.schema["users"].name

    def _null_question(self, table: str, column: str, target: str) -> _Question:
        return _Question(
            "null_without_place", BLOCKER,
            f"{self.schema[table].name}.{column} is NULL in rows, and {target} does not allow that",
            self._command(
                "UPDATE {source} SET {column} = a value WHERE {column} IS NULL, or in a schema migration"
                " ALTER TABLE {target} ALTER COLUMN {column} DROP NOT NULL",
                source=table, column=sql.Identifier(column), target=sql.Identifier(self.schema.name, target),
            ),
            lambda: self.schema.compose(
                "SELECT t.{source.id} AS label FROM {source} AS t WHERE t.{column} IS NULL", source=table, column=sql.Identifier(column)
            ),
        )

    def _lost_question(self, table: str, column: str, why: str) -> _Question:
        value = sql.SQL("t.{}").format(sql.Identifier(column))
        holds = sql.SQL("{} IS NOT NULL").format(value)
        return _Question(
            "column_without_destination", WARNING,
            f"{self.schema[table].name}.{column} holds values that are not carried: {why}",
            self._command(
                "Leave it: the legacy table keeps it; or carry it, with ALTER TABLE {target} ADD COLUMN {column} {type} in a schema migration",
                target=self.schema.table(_DESTINATIONS[table]), column=sql.Identifier(column),
                type=sql.SQL(self.schema[table].columns[column].type),
            ),
            lambda: self.schema.compose(
                "SELECT t.{source.id} AS label FROM {source} AS t WHERE {holds}", source=table, holds=holds
            ),
        )
