# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Installing the Prisma CLI for the tests: once, as a whole or not at all, and with a word on what is missing."""

from __future__ import annotations

import json
import re

import pytest

from tests.app import prisma_cli


@pytest.fixture
def npm(monkeypatch, tmp_path):
    """Puts a script in npm's place and an empty directory in the cache's: npm("exit 1")."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setattr(prisma_cli, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def put(script):
        for name, content in (("npm", script), ("node", "exit 0")):
            (programs / name).write_text(f"#!/bin/sh\n{content}\n")
            (programs / name).chmod(0o755)

    return put


def test_installed_once(npm, tmp_path):
    npm("mkdir node_modules; echo . >> ../calls")
    first = prisma_cli.install()
    assert (first / "node_modules").is_dir() and (first / "prisma.config.ts").is_file()
    assert prisma_cli.install() == first
    assert (tmp_path / "cache" / "calls").read_text() == ".\n"


def test_failed_installation_leaves_nothing(npm, tmp_path):
    npm("mkdir node_modules; echo the registry is away; exit 7")
    with pytest.raises(prisma_cli.PrismaCliError, match=r"(?s)npm ci ended with status 7\. Its output:\nthe registry is away"):
        prisma_cli.install()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["prisma-cli.lock"]


def test_left_overs_are_removed(npm, tmp_path):
    npm("true")
    for name in ("prisma-cli-0123456789abcdef", "prisma-cli.partial-x"):
        (tmp_path / "cache" / name).mkdir(parents=True)
    installed = prisma_cli.install()
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"prisma-cli.lock", installed.name}


def test_missing_node(monkeypatch, npm):
    monkeypatch.setattr(prisma_cli.shutil, "which", lambda name: None)
    with pytest.raises(prisma_cli.PrismaCliError, match=r"node or npm is missing\. Run make setup"):
        prisma_cli.install()


def test_lock_file_names_no_registry():
    lock = json.loads((prisma_cli.APPLICATION / "package-lock.json").read_text())
    assert not any("resolved" in package for package in lock["packages"].values())
    assert all("integrity" in package for path, package in lock["packages"].items() if path)
    versions = {name: lock["packages"][f"node_modules/{name}"]["version"] for name in ("prisma", "@prisma/adapter-pg")}
    assert versions["prisma"] == versions["@prisma/adapter-pg"] and re.match(r"6\.19\.", versions["prisma"])
