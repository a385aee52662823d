"""The recipe of the test hosts' image: what it is made of, when it is made anew, and what it says when it cannot be."""

from __future__ import annotations

import subprocess
from collections import namedtuple

import host_image
import pytest

DEBIAN = {"ID": "debian", "VERSION_CODENAME": "bookworm", "PRETTY_NAME": "Debian 12"}
Usage = namedtuple("Usage", "total used free")


def test_the_key_changes_with_whatever_the_image_is_made_of(monkeypatch):
    key = host_image.recipe_key(DEBIAN, b"configure")
    assert key == host_image.recipe_key(dict(DEBIAN), b"configure")
    assert host_image.recipe_key({**DEBIAN, "VERSION_CODENAME": "trixie"}, b"configure") != key
    assert host_image.recipe_key(DEBIAN, b"configure otherwise") != key
    monkeypatch.setattr(host_image, "HOST_PACKAGES", (*host_image.HOST_PACKAGES, "acl"))
    assert host_image.recipe_key(DEBIAN, b"configure") != key


def test_the_release_is_read_from_the_machine():
    text = 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\n# a comment\nID=ubuntu\nVERSION_CODENAME=noble\n'
    assert host_image.release(text)["VERSION_CODENAME"] == "noble"
    with pytest.raises(host_image.ImageError, match=r"Fedora 41 is no release of Debian or Ubuntu.*Run the scenario"):
        host_image.release('PRETTY_NAME="Fedora 41"\nID=fedora\n')


def test_only_the_releases_own_apt_sources_are_used():
    targets = "\n".join(
        [
            "Debian|/etc/apt/sources.list.d/debian.sources:1",
            "Debian|/etc/apt/sources.list.d/debian.sources:2",
            "Vendor Inc.|/etc/apt/sources.list.d/vendor.list:1",
            "debian|/etc/apt/sources.list:4",
        ]
    )
    assert host_image.source_files(targets, DEBIAN) == ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"]
    with pytest.raises(host_image.ImageError, match="apt lists none of that origin"):
        host_image.source_files("Vendor|/etc/apt/sources.list:1\n", DEBIAN)


def test_the_machines_way_of_fetching_packages_goes_along_and_nothing_else():
    dump = "\n".join(
        [
            'APT::Architecture "amd64";',
            'Acquire "";',
            'Acquire::http "";',
            'Acquire::http::Proxy "proxy.example:3128";',
            'Acquire::Check-Date "false";',
            'Acquire::IndexTargets::deb::Packages::MetaKey "x";',
            'Acquire::Languages:: "none";',
        ]
    )
    assert host_image.acquire_settings(dump) == ['Acquire::http::Proxy "proxy.example:3128";', 'Acquire::Check-Date "false";']


def test_too_little_disk_is_noticed_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(host_image, "run", lambda *command: subprocess.CompletedProcess(command, 0, "/nowhere/storage\n", ""))
    monkeypatch.setattr(host_image.shutil, "disk_usage", lambda path: Usage(10, 9, 100 * 1024**2))
    with pytest.raises(host_image.ImageError, match=r"/ has 100 MB free, and it takes 2048 MB\. Free some space there\."):
        host_image.check_free_space()


@pytest.mark.parametrize("sudo", [None, "false"])
def test_a_user_without_rights_is_told_so(monkeypatch, sudo):
    monkeypatch.setattr(host_image.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(host_image.shutil, "which", lambda name: sudo)
    with pytest.raises(host_image.ImageError, match=r"not root and has no password-less sudo\. Run it as root"):
        host_image.require_privileges()


def test_a_user_with_sudo_takes_our_settings_along(monkeypatch):
    monkeypatch.setattr(host_image.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(host_image.shutil, "which", lambda name: "true")
    host_image.require_privileges()
    command = host_image.privileged("podman", "ps")
    assert command[:2] == ["sudo", "-n"] and command[-2:] == ["podman", "ps"]
    assert f"CONTAINERS_CONF={host_image.CONTAINERS_CONF}" in command


def test_a_failing_command_is_reported_with_its_last_words(monkeypatch):
    monkeypatch.setattr(host_image.os, "geteuid", lambda: 0)
    with pytest.raises(host_image.ImageError, match=r"^Failed to run sh -c: no such thing\. See to that"):
        host_image.run("sh", "-c", "echo no such thing >&2; exit 3")
    assert host_image.run("sh", "-c", "exit 3", check=False).returncode == 3
