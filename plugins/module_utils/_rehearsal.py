# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The whole way on a copy restored from the proven backup, timed: what the real run is going to do, and how long it is going to take."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from typing import Any, Callable, Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal, _mapping, _prisma, _rehearsal_copy, _scratch
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import Backup, explaining, utc, write_json
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema, read_schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import ending_in_order
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, connect, describe, psycopg2
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._contents import compare_rows
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies, parse_mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._online import OnlineCopy, OnlineOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma_deployment import deploy
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._rehearsal_accepted import ROWS, Accepted
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._rehearsal_writes import Writes
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._restore import Restore, choose_backup, describe_backup
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._throttle import Limits
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import Verification, verify_database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._version import COLLECTION_VERSION

FORECAST = "rehearsal.json"
#: What was known of the copy before another engine deployed to it.
PROGRESS = "rehearsal-progress.json"
FORECAST_VERSION = 1
#: The phase of the copy from which on the legacy tables are locked against writes, until its transaction ends.
_FIRST_LOCKED_PHASE = "lock the legacy tables"
_SHOWN = 5


def rehearse(parameters: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Rehearse the migration of a database that has not begun; where it is finished there is nothing to rehearse.

    Args:
        parameters: module parameters: connection options, policies and those of the module unified_user_rehearsal. With ``state`` of
            ``restored`` only the copy is made, for another engine to deploy to; ``continued`` goes on from there, ``absent`` drops it.
        check_mode: look at everything that would stop the restore, and only say what would be done.

    Returns:
        What the module returns.

    Raises:
        UnifiedUserError: names the step of the rehearsal that failed, or the migration has begun. The real database was not written to.
    """
    if parameters["state"] == "absent":
        return _drop(parameters, check_mode)
    live = connect(parameters)
    try:
        journal = _journal.describe(live)
    finally:
        live.close()
    if journal["finished"]:
        return {"changed": False, "planned": False, "finished": True}
    if journal["run"]:
        raise UnifiedUserError(
            f"rehearse the migration of {parameters['login_db']}", "it has begun: a copy would start from the middle of it",
            "Go on with playbooks/migrate.yml, or take it back first with playbooks/abort.yml",
        )
    backup = choose_backup({**parameters, "state": "restored", "require_proof": True})
    return {"finished": False, **Rehearsal(parameters, backup, check_mode).run()}


def _drop(parameters: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Drop the copy that ``restored`` made, unless it is to be kept."""
    target = parameters["target"] or _scratch.derived_name(parameters["login_db"], f"_{_rehearsal_copy.PURPOSE}")
    done = not check_mode and not parameters["keep"] and _rehearsal_copy.drop_copy(parameters, target)
    return {"changed": done, "finished": False, "planned": check_mode, "target": target, "kept": parameters["keep"]}


class Rehearsal:
    """One rehearsal.

    Args:
        parameters: as for `rehearse`.
        backup: a proven backup.
        check_mode: only look.
    """

    def __init__(self, parameters: dict[str, Any], backup: Backup, check_mode: bool) -> None:
        self._parameters = parameters
        self._backup = backup
        self._check_mode = check_mode
        self._live = parameters["login_db"]
        self._restore = Restore({**parameters, "state": "restored"}, backup, check_mode, _rehearsal_copy.PURPOSE)
        self.target = self._restore.target
        self._mapping = parse_mapping(parameters["mapping"])
        self._durations: dict[str, int] = {}
        self._catalogue: dict[str, Any] = {}
        self._accepted = Accepted(parameters["accepted_changes"])
        self._progress = os.path.join(backup.path, PROGRESS)
        self._unified = [self._mapping.table(name) for name in _mapping.UNIFIED_TABLES]

    def run(self) -> dict[str, Any]:
        """Restore, go the way there and back, write the forecast beside the backup, and drop the copy whatever happens.

        Raises:
            UnifiedUserError: as `rehearse`.
        """
        if self.target == self._live:
            raise UnifiedUserError(
                f"rehearse in database {self.target}", "it is the real one", "Set rehearsal_database to the name of a database that does not exist"
            )
        started = time.monotonic()
        admin = connect(self._parameters, self._parameters["maintenance_db"])
        try:
            # The restore holds the plain name only as long as it lasts.
            _scratch.hold_name(admin, f"{self.target} (rehearsal)")
            return self._run(started)
        finally:
            admin.close()

    def _run(self, started: float) -> dict[str, Any]:
        result: dict[str, Any] = {"changed": True, "planned": self._check_mode, "target": self.target, "kept": False}
        if self._check_mode:
            _prisma.read_migrations(self._parameters["migrations_path"])
            restored = self._restore.run()
            return {**result, "backup": describe_backup(self._backup), "dropped_leftover": restored["dropped_leftover"]}
        state = self._parameters["state"]
        try:
            with ending_in_order():
                if state != "continued":
                    result["dropped_leftover"] = self._timed("restore", self._restore.run)["dropped_leftover"]
                if state == "restored":
                    self._write_progress()
                    return {**result, "kept": True, "backup": describe_backup(self._backup)}
                found = self._go_the_way()
        except BaseException:
            # The first error must stay the one shown; the next run finds the mark and drops the copy.
            with contextlib.suppress(UnifiedUserError, psycopg2.Error):
                self._put_away()
            raise
        kept = self._put_away()
        forecast = self._forecast(found)
        # What was done before this call, which only goes on.
        elsewhere = sum(self._durations[name] for name in ("restore", "schema_deploy")) if state == "continued" else 0
        path = os.path.join(self._backup.path, FORECAST)
        with explaining(f"write {path}"):
            write_json(path, forecast)
        return {
            "dropped_leftover": False,
            **result,
            "kept": kept,
            "backup": describe_backup(self._backup),
            "forecast": forecast,
            "forecast_path": path,
            "duration_ms": round((time.monotonic() - started) * 1000) + elsewhere,
        }

    def _write_progress(self) -> None:
        """Keep what the copy is before another engine deploys to it."""
        with self._step("restore") as database:
            before = _rehearsal_copy.Catalogue.read(database, self._parameters["schema"], self._unified)
        with explaining(f"write {self._progress}"):
            write_json(self._progress, {"target": self.target, "before": before.as_dict(), "durations": self._durations})

    def _read_progress(self) -> _rehearsal_copy.Catalogue:
        """Return what the copy was before another engine deployed to it; it is asked for once."""
        with explaining(f"read {self._progress}"):
            with open(self._progress, encoding="utf-8") as file:
                progress = json.load(file)
            os.remove(self._progress)
        if progress["target"] != self.target:
            raise UnifiedUserError(
                f"go on with the rehearsal in {self.target}", f"what was restored is {progress['target']}", "Run state: restored with the same target first"
            )
        self._durations.update(progress["durations"])
        return _rehearsal_copy.Catalogue.from_dict(progress["before"])

    def _put_away(self) -> bool:
        """Drop the copy unless it is to be kept; return whether it is kept."""
        if not self._parameters["keep"]:
            _rehearsal_copy.drop_copy(self._parameters, self.target)
        return self._parameters["keep"]

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Say of a failure in the block which step of the rehearsal it was, and that nothing real was touched."""
        try:
            yield
        except (UnifiedUserError, psycopg2.Error) as error:
            look = f"look at {self.target}, which was kept" if self._parameters["keep"] else "set rehearsal_keep: true to look at the copy"
            raise UnifiedUserError(
                f"rehearse {name} in {self.target}",
                str(error) if isinstance(error, UnifiedUserError) else describe(error),
                f"Database {self._live} was not touched: put the cause right ({look}), then run the same command again",
                **{**getattr(error, "details", {}), "step": name, "changed": False},
            ) from error

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[Database]:
        """Open a session on the copy for one step, whose failures are explained."""
        with self._explained(name), contextlib.closing(_rehearsal_copy.open_copy(self._parameters, self.target)) as database:
            yield database

    def _timed(self, name: str, function: Callable[[], Any]) -> Any:
        """Call what makes up a step of the real run, and keep how long it took."""
        started = time.monotonic()
        result = function()
        duration = round((time.monotonic() - started) * 1000)
        self._durations[name] = result.get("duration_ms", duration) if isinstance(result, dict) else duration
        return result

    def _go_the_way(self) -> dict[str, Any]:
        """Schema, writes as before, copy, proof, writes as afterwards, proof, and back; return what the forecast needs."""
        migrations = self._deploy_schema()
        with contextlib.closing(_rehearsal_copy.open_copy(self._parameters, self.target)) as database:
            with self._explained("application-style writes on the legacy side"):
                schema = read_schema(database, self._parameters["schema"], self._mapping)
                schema.require()
                before = _rehearsal_copy.measure_others(database, schema)[0]
                writes = Writes(database, schema, self._parameters["email_match"], self._live)
                names = writes.write_legacy()
                written = _rehearsal_copy.measure_others(database, schema)[0]
                self._require_added(schema, before, written, writes.rows_added)
            with self._step("data_migration") as session:
                copied = self._timed("data_migration", self._copier(session).run)
            with self._step("verification") as session:
                verified = self._timed("verification", lambda: self._verify(session))
                writes.require_carried()
            names += self._write_unified(writes)
            with self._step("rollback") as session:
                undone = self._timed("rollback", self._copier(session).undo)
                self._require_back(session, schema, written, writes)
        return {"migrations": migrations, "copied": copied, "checks": len(verified.checks), "removed": undone["counts"], "writes": names}

    def _deploy_schema(self) -> list[dict[str, str]]:
        """Apply all pending migrations, and require that nothing but the unified tables, and what is accepted, is another one afterwards."""
        path, schema = self._parameters["migrations_path"], self._parameters["schema"]
        options = _prisma.Options(
            path=path,
            schema=schema,
            lock_timeout=self._parameters["lock_timeout"],
            lock_retry_seconds=self._parameters["lock_retry_seconds"],
            unified_model=self._mapping,
        )
        with self._step("schema_deploy") as database:
            if self._parameters["state"] == "continued":
                before, applied = self._read_progress(), self._parameters["applied"]
                self._durations["schema_deploy"] = self._parameters["schema_deploy_ms"]
            else:
                before = _rehearsal_copy.Catalogue.read(database, schema, self._unified)
                applied = self._timed(
                    "schema_deploy", lambda: deploy(database, options, lambda: _rehearsal_copy.open_copy(self._parameters, self.target), False)
                )["applied"]
            after = _rehearsal_copy.Catalogue.read(database, schema, self._unified)
            self._require_accepted("change objects", before.changes(after), _rehearsal_copy.belongings_of(database, self._accepted.tables("added")))
            self._require_accepted("change rows", self._changed_rows(database, read_schema(database, schema, self._mapping)), {})
            self._catalogue = {"objects_before": before.size, "objects_after": after.size, "changes_outside": self._accepted.changes}
        by_name = {migration.name: migration.checksum for migration in _prisma.read_migrations(path)}
        return [{"name": name, "checksum": by_name[name]} for name in applied]

    def _changed_rows(self, database: Database, schema: Schema) -> list[dict[str, str]]:
        """List the tables beside the unified ones whose rows are not those of the backup; columns and tables that came and were accepted apart."""
        measured, left_out = _rehearsal_copy.measure_others(database, schema, self._accepted.leaves_out)
        apart = {*left_out, *(change["name"] for change in self._accepted.changes if change["kind"] == "table" and change["problem"] in ("added", "gone"))}
        wanted, found = ([table for table in tables if table["name"] not in apart] for tables in (self._backup.manifest["tables"], measured))
        return [{"kind": ROWS, "name": table["name"], "problem": "altered"} for table in compare_rows(wanted, found) if table["differing"]]

    def _require_accepted(self, deed: str, changes: list[dict[str, str]], belongings: dict[tuple[str, str], str]) -> None:
        """Raise unless an operator accepts every one of the changes."""
        # Tables first: who accepts one accepts what comes with it.
        others = sorted(self._accepted.sort_out(changes, belongings), key=lambda change: change["kind"] != "table")
        if not others:
            return
        more = len(others) - _SHOWN
        shown = ", ".join(f"{change['kind']} {change['name']} ({change['problem']})" for change in others[:_SHOWN])
        raise UnifiedUserError(
            "accept the pending migrations",
            f"they {deed} outside the unified tables: {shown}" + (f", and {more} more" if more > 0 else ""),
            "Deploy what does that with a release of the application of its own, before or after the migration of the users, or accept each by "
            "its kind, name and change, with a reason, in accepted_changes (rehearsal_accepted_changes)",
            outside_changes=others,
        )

    def _copier(self, database: Database) -> AtomicCopy:
        # With the sync on there is more that could go wrong.
        options = Options.from_parameters({**self._parameters, "sync": True})
        if self._parameters["strategy"] == "atomic":
            return AtomicCopy(database, options)
        online = OnlineOptions(owner=self.target, limits=Limits(replica_lag=0))
        return OnlineCopy(database, options, online, lambda: _rehearsal_copy.open_copy(self._parameters, self.target))

    def _verify(self, database: Database, cutover_at: str | None = None) -> Verification:
        names = ("schema", "mapping", "sample_size", "mask_pii")
        return verify_database(
            database, policies=Policies.from_parameters(self._parameters), cutover_at=cutover_at,
            **{name: self._parameters[name] for name in names},
        ).require()

    def _write_unified(self, writes: Writes) -> list[str]:
        """Write as the application does after cut-over, and require that verification knows these rows for what they are."""
        with self._step("application-style writes on the unified side") as session:
            moment = session.value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')")
            names = writes.write_unified()
            totals = self._verify(session, moment).totals
            if not totals["born_after_cutover"] or not totals["changed_since_cutover"]:
                raise UnifiedUserError(
                    "tell rows of after cut-over from others", "verification saw none of the rows just written",
                    "Report this with the versions of the collection and of the server",
                )
        return names

    @staticmethod
    def _require_added(schema: Schema, before: list[dict[str, Any]], written: list[dict[str, Any]], added: dict[str, int]) -> None:
        """Raise unless the legacy writes changed as many rows as they mean to, and no other table."""
        touched = {schema[name].name: count for name, count in added.items() if count}
        for table in compare_rows(before, written):
            more = next((count for name, count in touched.items() if table["name"] in _spellings(schema.name, name)), 0)
            if table["actual"] is None or table["expected"] is None or table["actual"] - table["expected"] != more or table["differing"] != bool(more):
                raise UnifiedUserError(
                    "write on the legacy side as the application does",
                    f"table {table['name']} has {table['actual']} rows after {table['expected']}, with {more} written"
                    if not table["differing"] or table["problem"] == "rows" else f"table {table['name']} changed with them",
                    "Look for triggers or rules on the legacy tables",
                )

    @staticmethod
    def _require_back(database: Database, schema: Schema, written: list[dict[str, Any]], writes: Writes) -> None:
        """Raise unless the legacy side is what it was after the writes, and the unified side is empty."""
        problems = [
            f"table {table['name']} is not what it was" for table in compare_rows(written, _rehearsal_copy.measure_others(database, schema)[0])
            if table["differing"]
        ]
        problems += [
            f"table {schema[name].name} is not empty" for name in _mapping.FILLED
            if database.value(schema.compose("SELECT EXISTS (SELECT FROM {table})", table=name))
        ]
        if problems:
            raise UnifiedUserError("go back", "; ".join(problems[:_SHOWN]), "Look for triggers between the unified and the legacy tables")
        writes.require_kept()

    def _forecast(self, found: dict[str, Any]) -> dict[str, Any]:
        phases = found["copied"]["phases"]
        locked = itertools.dropwhile(lambda phase: phase["name"] != _FIRST_LOCKED_PHASE, phases)
        return {
            "forecast_version": FORECAST_VERSION,
            "rehearsed_at": utc(time.time()),
            "collection_version": COLLECTION_VERSION,
            "database": self._live,
            "backup": {name: self._backup.manifest[name] for name in ("sha256", "snapshot_time")},
            "server": self._backup.manifest["server"],
            "migrations": found["migrations"],
            "catalogue": self._catalogue,
            "unused_accepted": self._accepted.unused,
            "counts": found["copied"]["counts"],
            "checks": found["checks"],
            "removed_by_rollback": found["removed"],
            "writes": found["writes"],
            "steps_ms": self._durations,
            "phases": phases,
            "longest_lock_ms": found["copied"].get("longest_batch_ms") or sum(phase["duration_ms"] for phase in locked),
        }


def _spellings(schema: str, table: str) -> set[str]:
    """Return how the server may spell a table's qualified name: each part quoted or not."""
    quoted = [(name, '"' + name.replace('"', '""') + '"') for name in (schema, table)]
    return {f"{left}.{right}" for left in quoted[0] for right in quoted[1]}
