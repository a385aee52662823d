"""Builds the image of the test hosts: systemd, sshd, PostgreSQL and python3-psycopg2 of the machine's own release.

No image registry is asked. mmdebstrap makes the system out of the machine's own apt sources, whatever Debian or Ubuntu
release that is, and podman imports it. The image is kept between runs and made anew when its recipe changes.

    tools/host_image.py        builds the image if it is missing and prints its name
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache"
CONTAINERS_CONF = HERE / "host_image.containers.conf"
CONFIGURE = HERE / "host_image_configure.sh"
REPOSITORY = "unified-user-test-host"
LABEL = "rnltlabs.unified_user.image"

# What the machine needs, in names that Debian and Ubuntu share.
MACHINE_PACKAGES = (
    "podman", "runc", "netavark", "aardvark-dns", "containernetworking-plugins", "fuse-overlayfs", "uidmap", "iptables",
    "nftables", "mmdebstrap", "openssh-client",
)
# What the test host needs on top of mmdebstrap's minbase.
HOST_PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "openssh-server", "sudo", "iproute2", "procps", "postgresql", "python3",
    "python3-psycopg2",
)
# Nobody reads manuals there (those of PostgreSQL stay: update-alternatives insists on them).
LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*")
FREE_BYTES = 2 * 1024**3


class ImageError(Exception):
    """The image cannot be had; the message says why and what to do."""


def say(text: str) -> None:
    """Prints a line of progress; standard output carries the result only."""
    print(f"host image: {text}", file=sys.stderr, flush=True)


def privileged(*command: str) -> list[str]:
    """The command as root sees it: as it is when root runs us, else through sudo, with our containers.conf."""
    if os.geteuid() == 0:
        return list(command)
    return ["sudo", "-n", "env", f"CONTAINERS_CONF={CONTAINERS_CONF}", *command]


def environment() -> dict[str, str]:
    """This process's environment with our containers.conf in it."""
    return {**os.environ, "CONTAINERS_CONF": str(CONTAINERS_CONF)}


def run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a privileged command without standard input and returns what it printed.

    Raises ImageError with the command's last words when it fails and `check` is set.
    """
    done = subprocess.run(
        privileged(*command), env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if check and done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ImageError(f"Failed to run {' '.join(command[:2])}: {' '.join(words) or 'it said nothing'}. See to that and run it again.")
    return done


def require_privileges() -> None:
    """Raises ImageError unless root runs us or sudo works without a password."""
    if os.geteuid() == 0:
        return
    sudo = shutil.which("sudo")
    if sudo and subprocess.run([sudo, "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0:
        return
    raise ImageError(
        "Failed to prepare the test hosts: containers with systemd need root, and this user is not root and has no "
        "password-less sudo. Run it as root, or allow this user `sudo -n`."
    )


def release(text: str | None = None) -> dict[str, str]:
    """The machine's release, from os-release (or from its text): ID, VERSION_CODENAME and the like.

    Raises ImageError when it names no codename to make a system of.
    """
    text = Path("/etc/os-release").read_text(encoding="utf-8") if text is None else text
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    found = {name.strip(): value.strip().strip("\"'") for name, value in pairs}
    if not found.get("VERSION_CODENAME") or not shutil.which("apt-get"):
        raise ImageError(
            f"Failed to prepare the test hosts: {found.get('PRETTY_NAME', 'this machine')} is no release of Debian or Ubuntu, whose "
            "packages they are made of. Run the scenario on one of those."
        )
    return found


def recipe_key(of_release: dict[str, str], configure: bytes) -> str:
    """What the image is made of, as 16 hex digits: they change when anything in it does."""
    parts = [of_release.get("ID", ""), of_release["VERSION_CODENAME"], os.uname().machine, *HOST_PACKAGES, *LEFT_OUT]
    return hashlib.sha256("\n".join(parts).encode() + b"\n" + configure).hexdigest()[:16]


def install_machine_packages() -> None:
    """Installs what is missing of MACHINE_PACKAGES, without recommends."""
    asked = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *MACHINE_PACKAGES],
        capture_output=True, text=True, check=False,
    )
    present = {line.split()[0] for line in asked.stdout.splitlines() if line.endswith(" installed")}
    missing = [name for name in MACHINE_PACKAGES if name not in present]
    if not missing:
        return
    say(f"installing on this machine: {', '.join(missing)}")
    run("apt-get", "update", "--quiet")
    run("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *missing)


def source_files(targets: str, of_release: dict[str, str]) -> list[str]:
    """The apt source files of the release itself, out of `apt-get indextargets`' lines `origin|file:entry`.

    Files of other origins (a vendor's repository) are left out: the test host needs none of them.
    Raises ImageError when none is left.
    """
    files: list[str] = []
    for line in targets.splitlines():
        origin, _bar, entry = line.partition("|")
        file = entry.rpartition(":")[0]
        if origin.lower() == of_release.get("ID", "").lower() and file and file not in files:
            files.append(file)
    if not files:
        raise ImageError(
            f"Failed to find apt sources of {of_release.get('PRETTY_NAME', 'this release')}: apt lists none of that origin. "
            "Run `apt-get update` and look at its messages."
        )
    return files


def apt_sources(of_release: dict[str, str]) -> list[str]:
    """The machine's own apt source files for its release; refreshes apt's lists once if they are missing."""
    asked = ("apt-get", "indextargets", "--format", "$(ORIGIN)|$(SOURCESENTRY)", "Created-By: Packages")
    targets = run(*asked).stdout
    if not targets.strip():
        run("apt-get", "update", "--quiet")
        targets = run(*asked).stdout
    return source_files(targets, of_release)


def acquire_settings(dump: str) -> list[str]:
    """How this machine fetches packages (proxies, certificates, limits), as apt options, out of `apt-config dump`."""
    skipped = ("Acquire::IndexTargets", "Acquire::Changelogs", "Acquire::cdrom", "Acquire::Languages")
    lines = [line for line in dump.splitlines() if line.startswith("Acquire::") and not line.startswith(skipped)]
    return [line for line in lines if not line.endswith(' "";')]


def check_free_space() -> None:
    """Raises ImageError when podman's storage or the temporary directory has too little room."""
    storage = Path(run("podman", "info", "--format", "{{.Store.GraphRoot}}").stdout.strip())
    for folder in (storage, Path(tempfile.gettempdir())):
        there = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
        free = shutil.disk_usage(there).free
        if free < FREE_BYTES:
            raise ImageError(
                f"Failed to build the test host's image: {there} has {free // 1024**2} MB free, and it takes "
                f"{FREE_BYTES // 1024**2} MB. Free some space there."
            )


def build(image: str, of_release: dict[str, str]) -> None:
    """Makes the system and imports it as `image`, in one pipe, so that it touches the disk once."""
    started = time.monotonic()
    sources = apt_sources(of_release)
    options = [f"--aptopt={line}" for line in acquire_settings(run("apt-config", "dump").stdout)]
    options += [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
    say(f"making a system of {of_release['VERSION_CODENAME']} with {', '.join(HOST_PACKAGES)} (about a minute)")
    make = privileged("mmdebstrap", "--variant=minbase", f"--include={','.join(HOST_PACKAGES)}", *options)
    make += [f"--customize-hook={CONFIGURE}", "--format=tar", of_release["VERSION_CODENAME"], "-", *sources]
    take = privileged("podman", "import", "--quiet", "--change", 'CMD ["/lib/systemd/systemd"]')
    take += ["--change", f"LABEL {LABEL}=1", "-", image]
    with tempfile.TemporaryFile("w+") as log:
        maker = subprocess.Popen(make, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        taker = subprocess.run(take, env=environment(), stdin=maker.stdout, capture_output=True, text=True, check=False)
        maker.stdout.close()
        if maker.wait() != 0:
            # A tar that stopped in the middle may have been imported all the same.
            run("podman", "rmi", "--force", image, check=False)
            log.seek(0)
            words = "".join(log.readlines()[-15:])
            raise ImageError(f"Failed to make the test host's system: mmdebstrap said:\n{words}See to that and run it again.")
    if taker.returncode != 0:
        raise ImageError(f"Failed to import the test host's image: {taker.stderr.strip()}. See to that and run it again.")
    say(f"made in {time.monotonic() - started:.0f} s")


def remove_superseded(image: str) -> None:
    """Removes images of earlier recipes that no container uses."""
    listed = run("podman", "images", "--filter", f"label={LABEL}", "--format", "{{.Repository}}:{{.Tag}}").stdout.split()
    for other in listed:
        if other.rpartition("/")[2] != image:
            run("podman", "rmi", other, check=False)


def ensure() -> str:
    """Returns the name of an image that fits the recipe, building it if it is missing.

    Raises ImageError when this machine or this user cannot have one.
    """
    of_release = release()
    require_privileges()
    install_machine_packages()
    image = f"{REPOSITORY}:{recipe_key(of_release, CONFIGURE.read_bytes())}"
    CACHE.mkdir(exist_ok=True)
    # Two stages that need it may begin at once.
    with open(CACHE / "host-image.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if run("podman", "image", "exists", image, check=False).returncode != 0:
            check_free_space()
            build(image, of_release)
            remove_superseded(image)
    return image


def main() -> int:
    """Prints the image's name, or says why there is none."""
    try:
        print(ensure())
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
