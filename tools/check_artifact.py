"""Builds the collection from the tracked files, installs the tarball offline, and uses it as an operator would.

Checked: the tarball holds no developer's file and no link to nowhere, it installs beside its dependency, every module and
role has documentation that ansible-doc can show, and every playbook's syntax is right when called by its full name.
Each check is one line; with --junit they are also written as JUnit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

import run_sanity

ROOT = run_sanity.ROOT
BIN = Path(sys.executable).parent
UNWANTED = ("tests/", "tools/", "molecule/", "requirements/", "inventories/demo/", ".cache/", ".venv/", ".collections/", ".git/", ".ci/")
UNWANTED_ENDINGS = ("vault.yml", ".pyc", ".retry", ".tar.gz")


class CheckError(Exception):
    """A check's finding."""


class Artifact:
    """The built and installed collection, in a temporary directory."""

    def __init__(self, folder: Path, root: Path):
        self.folder = folder
        self.source = run_sanity.copy_tracked(folder / "source", root)
        metadata = yaml.safe_load((self.source / "galaxy.yml").read_text())
        self.name, self.version = f"{metadata['namespace']}.{metadata['name']}", metadata["version"]
        self.dependencies = metadata["dependencies"]
        self.tarball = folder / f"{self.name.replace('.', '-')}-{self.version}.tar.gz"
        self.installed = folder / "installed" / "ansible_collections" / Path(*self.name.split("."))
        # Nothing of the checkout may help: own home, own paths, own working directory.
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
        self.environment.update(
            HOME=str(folder), ANSIBLE_COLLECTIONS_PATH=str(folder / "installed"), ANSIBLE_NOCOLOR="1", ANSIBLE_DEPRECATION_WARNINGS="0"
        )

    def ansible(self, program: str, *arguments: str) -> str:
        """Runs an Ansible program and returns its output; CheckError with what it said when it fails."""
        command = [str(BIN / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CheckError((done.stderr.strip() or done.stdout.strip())[-2000:])
        return done.stdout

    def build(self) -> None:
        """`ansible-galaxy collection build` makes the tarball."""
        self.ansible("ansible-galaxy", "collection", "build", str(self.source), "--output-path", str(self.folder))

    def contents(self) -> None:
        """What is in the tarball is meant for operators, and every link in it leads somewhere in it."""
        with tarfile.open(self.tarball) as archive:
            members = {member.name.removesuffix("/"): member for member in archive.getmembers()}
        unwanted = [name for name in members if f"{name}/".startswith(UNWANTED) or name.endswith(UNWANTED_ENDINGS)]
        unwanted += [
            name for name, member in members.items()
            if member.issym() and os.path.normpath(os.path.join(os.path.dirname(name), member.linkname)) not in members
        ]
        wanted = [name for name in ("README.md", "LICENSE", "meta/runtime.yml", "plugins", "roles", "playbooks") if name not in members]
        if unwanted or wanted:
            raise CheckError("\n".join([f"{name}: does not belong there" for name in unwanted] + [f"{name}: is missing" for name in wanted]))

    def install(self) -> None:
        """`ansible-galaxy collection install --offline` puts it beside what it depends on."""
        for name in self.dependencies:
            target = self.folder / "installed" / "ansible_collections" / Path(*name.split("."))
            shutil.copytree(ROOT / ".collections" / "ansible_collections" / Path(*name.split(".")), target)
        self.ansible("ansible-galaxy", "collection", "install", "--offline", "--collections-path", str(self.folder / "installed"), str(self.tarball))
        if not (self.installed / "MANIFEST.json").exists():
            raise CheckError("it was installed, but is not where it should be")

    def action_group(self) -> None:
        """meta/runtime.yml's action group lists the modules that connect to the database, and no other.

        The connection reaches each of its members through module_defaults, and one without these options would refuse them.
        """
        groups = yaml.safe_load((self.installed / "meta" / "runtime.yml").read_text())["action_groups"]
        listed = groups[self.name.split(".")[1]]
        modules = sorted((self.installed / "plugins" / "modules").glob("*.py"))
        connecting = [path.stem for path in modules if f"- {self.name}.connection" in path.read_text()]
        if sorted(listed) != connecting:
            raise CheckError(f"meta/runtime.yml lists {', '.join(listed)}; documented with connection options are {', '.join(connecting)}")

    def document(self, kind: str, name: str) -> None:
        """ansible-doc shows a module's or role's documentation, with a description of the whole and of every option."""
        shown = json.loads(self.ansible("ansible-doc", "--json", "--type", kind, f"{self.name}.{name}"))[f"{self.name}.{name}"]
        options = shown["doc"].get("options", {}) if kind == "module" else shown["entry_points"]["main"].get("options", {})
        bare = [option for option, details in options.items() if not details.get("description")]
        if kind == "module" and not (shown.get("examples") and shown.get("return")):
            bare.append("examples or return values")
        if bare:
            raise CheckError(f"not documented: {', '.join(bare)}")

    def syntax(self, playbook: str) -> None:
        """`ansible-playbook --syntax-check` accepts the playbook by its full name, with the inventory that is shipped."""
        self.ansible("ansible-playbook", "--syntax-check", "--inventory", str(self.installed / "inventories" / "staging"), f"{self.name}.{playbook}")


def checks(artifact: Artifact):
    """Name and function of each check, in order."""
    yield "build", artifact.build
    yield "contents", artifact.contents
    yield "install", artifact.install
    yield "action group", artifact.action_group
    for module in sorted((artifact.source / "plugins" / "modules").glob("*.py")):
        yield f"documentation of module {module.stem}", lambda name=module.stem: artifact.document("module", name)
    for role in sorted((artifact.source / "roles").glob("*/meta/argument_specs.yml")):
        yield f"documentation of role {role.parent.parent.name}", lambda name=role.parent.parent.name: artifact.document("role", name)
    for playbook in sorted((artifact.source / "playbooks").glob("*.yml")):
        yield f"syntax of playbook {playbook.stem}", lambda name=playbook.stem: artifact.syntax(name)


def write_junit(path: Path, results: list[tuple[str, str | None]]) -> None:
    """Writes the results, name and finding or None, as JUnit."""
    suite = ElementTree.Element("testsuite", name="artifact", tests=str(len(results)), failures=str(sum(bool(text) for _name, text in results)))
    for name, text in results:
        case = ElementTree.SubElement(suite, "testcase", classname="artifact", name=name)
        if text:
            ElementTree.SubElement(case, "failure", message=text.splitlines()[0]).text = text
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(suite).write(path, encoding="unicode")


def main(argv: list[str] | None = None) -> int:
    """The program: 0 when every check passes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--junit", type=Path, help="also write the results there")
    arguments = parser.parse_args(argv)
    results = []
    with tempfile.TemporaryDirectory(prefix="artifact-") as folder:
        for name, check in checks(Artifact(Path(folder), arguments.root)):
            try:
                check()
                results.append((name, None))
            except CheckError as error:
                results.append((name, str(error)))
            print(f"{'FAILED' if results[-1][1] else 'ok':6} {name}" + (f"\n{results[-1][1]}" if results[-1][1] else ""), flush=True)
            if name in ("build", "install") and results[-1][1]:
                break
    if arguments.junit:
        write_junit(arguments.junit, results)
    return 1 if any(text for _name, text in results) else 0


if __name__ == "__main__":
    sys.exit(main())
