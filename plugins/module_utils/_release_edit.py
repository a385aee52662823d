# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Editing a release of the application before it is built: imports that point elsewhere, routes that change places.

Everything is looked at before anything is written. A release is edited once: a note in it says how, and a release whose editing was
interrupted is not built, but made anew. Edits can be taken back, in a copy of the release that they were made in.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

#: The note, in the release's directory.
NOTE = ".unified_user_edits.json"
#: A source file is far smaller, in bytes.
_LARGEST = 4 * 1024 * 1024
_ACTION = "edit the release"


@dataclass(frozen=True)
class Rewrite:
    """Text that becomes other text.

    Attributes:
        files: paths or patterns (``*``, ``**``) below the release's directory; brackets stand for themselves.
        before, after: the text, to the letter.
        places: how many times it occurs in all of these files together; None for once in each of them.
    """

    files: tuple[str, ...]
    before: str
    after: str
    places: int | None = None


@dataclass(frozen=True)
class Move:
    """A file or directory that takes another place.

    Attributes:
        source, target: paths below the release's directory.
        displaced: where what stands at the target goes; None for the source's place, so that both change places.
    """

    source: str
    target: str
    displaced: str | None = None


@dataclass(frozen=True)
class Edits:
    """What is done to a release: first the rewrites, then the moves, each in order.

    Attributes:
        rewrites, moves: what to do.
        undoes: the digest of the edits that these take back; then the moves come first. Empty for any others.
    """

    rewrites: tuple[Rewrite, ...] = ()
    moves: tuple[Move, ...] = ()
    undoes: str = ""

    @classmethod
    def from_parameters(cls, rewrites: list[dict], moves: list[dict]) -> Edits:
        """Make edits of a module's parameters."""
        return cls(
            tuple(Rewrite(tuple(entry["files"]), entry["before"], entry["after"], entry.get("places")) for entry in rewrites),
            tuple(Move(entry["source"], entry["target"], entry.get("displaced")) for entry in moves),
        )

    def inverse(self) -> Edits:
        """Return the edits that take these back.

        Raises:
            UnifiedUserError: names a rewrite of which the text alone does not tell what was there before.
        """
        for number, rewrite in enumerate(self.rewrites):
            if not rewrite.after:
                raise _not_invertible(rewrite, "it leaves nothing to look for")
            for other in self.rewrites[:number]:
                if rewrite.after == other.after and _may_meet(rewrite, other):
                    raise _not_invertible(rewrite, "the one of %s, perhaps in the same file, becomes the same" % json.dumps(other.before))
        return Edits(
            tuple(Rewrite(rewrite.files, rewrite.after, rewrite.before, rewrite.places) for rewrite in reversed(self.rewrites)),
            tuple(_move_back(move) for move in reversed(self.moves)),
            self.digest,
        )

    @property
    def digest(self) -> str:
        """A sum that tells two edits apart."""
        text = json.dumps([[vars(entry) for entry in self.rewrites], [vars(entry) for entry in self.moves]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _not_invertible(rewrite: Rewrite, why: str) -> UnifiedUserError:
    return UnifiedUserError(
        "take the edits back", "the rewrite of %s to %s (%s) cannot be: %s" % (
            json.dumps(rewrite.before), json.dumps(rewrite.after), ", ".join(rewrite.files), why),
        "Go back to a release that is kept, or make one from the source without that rewrite",
    )  # fmt: skip


def _may_meet(one: Rewrite, other: Rewrite) -> bool:
    """Return whether two rewrites may be of one file."""
    files = (*one.files, *other.files)
    return any("*" in name or "?" in name for name in files) or bool({*map(os.path.normpath, one.files)} & {*map(os.path.normpath, other.files)})


def _move_back(move: Move) -> Move:
    """Return the move that takes one back: two that changed places do so again, else what was displaced comes back."""
    return Move(move.displaced, move.target, move.source) if move.displaced else Move(move.target, move.source)


@dataclass
class Plan:
    """What editing a release comes to.

    Attributes:
        texts: new text by path, relative.
        places: occurrences by path, relative.
        moves: (from, to) by path, relative, in the order of renaming.
        diff: what changes, as text.
    """

    texts: dict[str, str] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    moves: list[tuple[str, str]] = field(default_factory=list)
    diff: str = ""


def edit(directory: str, edits: Edits, live: str = "", check_mode: bool = False) -> dict[str, Any]:
    """Edit a release, or plan to.

    Args:
        directory: the release's directory.
        edits: what to do.
        live: the link that names the release which serves; that one is never edited.
        check_mode: whether to leave it at the plan.

    Returns:
        ``changed``, ``files`` (path and places), ``moves`` and ``diff``.

    Raises:
        UnifiedUserError: something does not match exactly as it should, or the release was edited otherwise before.
    """
    root = os.path.realpath(directory)
    if not os.path.isdir(root):
        raise _refused("there is no directory %s" % directory, "Fetch the release first")
    if live and os.path.realpath(live) == root:
        raise _refused("%s is the release that serves" % directory, "Make a new release, and edit that one")
    if _noted(root, edits):
        return {"changed": False, "files": [], "moves": [], "diff": ""}
    plan = make_plan(root, edits)
    changed = bool(plan.texts or plan.moves)
    if changed and not check_mode:
        _carry_out(root, edits, plan)
    files = [{"path": path, "places": places} for path, places in sorted(plan.places.items())]
    return {"changed": changed, "files": files, "moves": ["%s -> %s" % move for move in plan.moves], "diff": plan.diff}


def make_plan(root: str, edits: Edits) -> Plan:
    """Look at everything that the edits touch.

    Raises:
        UnifiedUserError: something does not match exactly as it should; says what was found instead.
    """
    plan = Plan()
    before: dict[str, str] = {}
    occupied: dict[str, bool] = {}
    for move in edits.moves:
        _plan_move(root, move, plan, occupied)
    # What is taken back is so where the moves back lead.
    tree = _Tree(root, plan.moves if edits.undoes else [], bool(edits.undoes))
    for rewrite in edits.rewrites:
        _plan_rewrite(tree, rewrite, plan, before)
    for path, text in before.items():
        lines = difflib.unified_diff(text.splitlines(), plan.texts[path].splitlines(), path, path, lineterm="", n=0)
        plan.diff += "".join(line + "\n" for line in lines)
    plan.diff += "".join("rename from %s\nrename to %s\n" % move for move in plan.moves)
    return plan


class _Tree:
    """The files of a release as they are named once some moves are done.

    Args:
        root: the release's directory.
        moves: (from, to), relative, in order; not done yet.
        edited: whether edits are taken back in it.
    """

    def __init__(self, root: str, moves: list[tuple[str, str]], edited: bool = False) -> None:
        self.root = root
        self.moves = moves
        self.edited = edited
        self._now: dict[str, str] = {}
        for folder, folders, names in os.walk(root) if moves else ():
            folders[:] = [name for name in folders if name != "node_modules"]
            for name in names:
                path = os.path.relpath(os.path.join(folder, name), root)
                self._now[self._moved(path)] = path

    def _moved(self, path: str) -> str:
        for source, target in self.moves:
            if path == source or path.startswith(source + os.sep):
                path = target + path[len(source) :]
        return path

    def matching(self, pattern: str) -> list[str]:
        """Return the files of a pattern. Brackets are names of Next.js's directories, not a pattern's."""
        _inside(self.root, pattern)
        if self.moves:
            return sorted(filter(_expression(pattern).fullmatch, self._now))
        literal = pattern.replace("[", "[[]")
        paths = glob.glob(os.path.join(glob.escape(self.root), literal), recursive=True)
        return sorted(os.path.relpath(path, self.root) for path in paths if os.path.isfile(path) and "node_modules" not in path.split(os.sep))

    def read(self, path: str) -> str:
        """Return the text of a file, by the name it will have."""
        return _read(self.root, self._now[path] if self.moves else path)


def _expression(pattern: str) -> re.Pattern:
    """Return a pattern of files as a regular expression; like the shell's, it does not mean what begins with a dot."""
    folders = r"(?:(?!\.)[^/]+/)*"
    *leading, last = os.path.normpath(pattern).split(os.sep)
    text = "".join(folders if part == "**" else _part(part) + "/" for part in leading)
    return re.compile(text + (folders + r"(?!\.)[^/]+" if last == "**" else _part(last)))


def _part(name: str) -> str:
    wild = {"*": "[^/]*", "?": "[^/]"}
    return (r"(?!\.)" if name[0] in wild else "") + "".join(wild.get(letter) or re.escape(letter) for letter in name)


def _plan_rewrite(tree: _Tree, rewrite: Rewrite, plan: Plan, before: dict[str, str]) -> None:
    if not rewrite.before or rewrite.before == rewrite.after:
        raise _refused("a rewrite has nothing to look for, or changes nothing", "Give it a text, and another one to stand for it")
    found = {}
    for pattern in rewrite.files:
        paths = tree.matching(pattern)
        if not paths:
            raise _refused("no file is %s" % pattern, "Correct the rewrite's files: they are named relative to the release")
        for path in paths:
            text = plan.texts.get(path)
            if text is None:
                text = before[path] = tree.read(path)
            found[path] = text.count(rewrite.before)
            plan.texts[path] = text
    wrong = {path: count for path, count in found.items() if count != 1} if rewrite.places is None else found
    expected = len(found) if rewrite.places is None else rewrite.places
    if sum(found.values()) != expected or (rewrite.places is None and wrong):
        told = ", ".join("%d in %s" % (count, path) for path, count in sorted(wrong.items()))
        raise _refused(
            "%s occurs %d times instead of %d (%s)" % (json.dumps(rewrite.before), sum(found.values()), expected, told),
            "Correct the rewrite, or check that this is the release it was written for",
        )
    for path, count in found.items():
        plan.texts[path] = plan.texts[path].replace(rewrite.before, rewrite.after)
        if tree.edited and plan.texts[path].count(rewrite.after) != count:
            raise _refused(
                "%s stands in %s in other places, too, so its rewrite cannot be taken back" % (json.dumps(rewrite.after), path),
                "Go back to a release that is kept, or make one from the source",
            )
        plan.places[path] = plan.places.get(path, 0) + count


def _plan_move(root: str, move: Move, plan: Plan, occupied: dict[str, bool]) -> None:
    source, target = _inside(root, move.source), _inside(root, move.target)
    displaced = _inside(root, move.displaced) if move.displaced else source

    def is_there(path: str) -> bool:
        return occupied.get(path, os.path.lexists(os.path.join(root, path)))

    for one, other in [(source, target), *((path, place) for path in (source, target, displaced) for place in occupied)]:
        if (one == other and (one, other) == (source, target)) or one.startswith(other + os.sep) or other.startswith(one + os.sep):
            raise _refused("%s and %s are not two places" % (one, other), "Correct the move: none may lead into another, nor into an earlier one's places")
    if not is_there(source):
        raise _refused("there is no %s to move" % source, "Correct the move, or check that this is the release it was written for")
    if displaced not in (source, target) and is_there(displaced):
        raise _refused("%s is there already, so %s cannot go there" % (displaced, target), "Correct the move's displaced")
    taken = is_there(target)
    if taken:
        aside = target + ".unified_user_aside"
        plan.moves += [(target, aside), (source, target), (aside, displaced)]
    else:
        plan.moves.append((source, target))
    occupied[source] = taken and displaced == source
    occupied[target] = True
    if taken:
        occupied[displaced] = True


def _inside(root: str, path: str) -> str:
    """Return a path without detours; refuse one that leads out of the release."""
    relative = os.path.normpath(path)
    resolved = os.path.realpath(os.path.join(root, os.path.dirname(relative)))
    if os.path.isabs(path) or relative.split(os.sep)[0] in ("..", ".") or (resolved + os.sep).find(root + os.sep) != 0:
        raise _refused("%s leads out of the release" % path, "Name places below the release's directory")
    return relative


def _read(root: str, path: str) -> str:
    full = os.path.join(root, _inside(root, path))
    try:
        if os.path.islink(full) or os.path.getsize(full) > _LARGEST:
            raise _refused("%s is a link or too large for a source file" % path, "Correct the rewrite's files")
        with open(full, encoding="utf-8", newline="") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused("%s cannot be read (%s)" % (path, getattr(error, "strerror", None) or "it is no text"), "Correct the rewrite's files") from error


def _noted(root: str, edits: Edits) -> bool:
    """Return whether the release has been edited just so."""
    try:
        with open(os.path.join(root, NOTE), encoding="utf-8") as file:
            note = json.load(file)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        note = {}
    if note.get("done") and note.get("digest") == edits.digest:
        return True
    if note.get("done") and edits.undoes and note.get("digest") == edits.undoes:
        return False
    if note.get("done") and edits.undoes:
        raise _refused("other edits than these were made in this release", "Name those that were: its %s tells them apart" % NOTE)
    why = "was edited otherwise before" if note.get("done") else "was being edited when that was interrupted"
    raise _refused("this release %s" % why, "Make the release anew, and edit that one")


def _carry_out(root: str, edits: Edits, plan: Plan) -> None:
    def note(done: bool) -> None:
        with open(os.path.join(root, NOTE), "w", encoding="utf-8") as file:
            json.dump({"digest": edits.digest, "done": done}, file)
            file.flush()
            os.fsync(file.fileno())

    def rewrite() -> None:
        for path, text in plan.texts.items():
            full = os.path.join(root, path)
            mode = os.stat(full).st_mode & 0o7777
            # A name of its own, then renamed: hard links of other releases keep their text.
            with open(full + ".unified_user_new", "w", encoding="utf-8", newline="") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
            os.replace(full + ".unified_user_new", full)

    def move() -> None:
        for source, target in plan.moves:
            os.makedirs(os.path.dirname(os.path.join(root, target)), exist_ok=True)
            os.rename(os.path.join(root, source), os.path.join(root, target))

    note(False)
    try:
        for step in (move, rewrite) if edits.undoes else (rewrite, move):
            step()
    except OSError as error:
        raise _refused(error.strerror or "it cannot be written", "Put that right, and make the release anew") from error
    note(True)


def _refused(cause: str, next_step: str) -> UnifiedUserError:
    return UnifiedUserError(_ACTION, cause, next_step)
