# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a further place for backups is asked to do; each kind of place does it in its own way."""

from __future__ import annotations

import abc
import re
from typing import Sequence

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

#: Names that a backup and its files can have; nothing else is ever asked for at a place.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
#: After how many days what a killed run left at a place is removed by the next copy of the same database.
STALE_DAYS = 1


class Place(abc.ABC):
    """A directory, another host or a bucket that holds copies of backups.

    A copy has the name of the backup. It is sent under a name that no reader takes for a backup, compared there, and only then published.
    Every method raises UnifiedUserError when the place cannot do it.

    Attributes:
        label: how messages and results call it; also what it is chosen by.
    """

    label: str

    def error(self, action: str, cause: str, next_step: str = "Put the cause right, then run the same command again") -> UnifiedUserError:
        """Return the error of something that went wrong here."""
        return UnifiedUserError(f"{action} at {self.label}", cause, next_step)

    @abc.abstractmethod
    def prepare(self, backup_path: str) -> None:
        """Raise if the place is no place for a copy of this backup, as far as that shows before anything is sent."""

    def local_path(self, name: str) -> str | None:
        """Return the directory of a copy if it can be read as one from this host, else None."""
        return None

    @abc.abstractmethod
    def names(self) -> list[str]:
        """Return the names of the published copies."""

    @abc.abstractmethod
    def read(self, name: str, file: str) -> bytes | None:
        """Return the content of a small file of a published copy, None if there is no such file."""

    @abc.abstractmethod
    def write(self, name: str, file: str, content: bytes) -> None:
        """Write a small file of a published copy, at once."""

    @abc.abstractmethod
    def send(self, backup_path: str, name: str, files: Sequence[str]) -> None:
        """Send files of a backup, unpublished; what an earlier, broken-off attempt left of them is replaced."""

    @abc.abstractmethod
    def digests(self, name: str, files: Sequence[str], published: bool) -> dict[str, str]:
        """Return file -> sha256 of what is stored there, of the files that are there."""

    @abc.abstractmethod
    def publish(self, name: str, manifest_file: str, manifest: bytes) -> None:
        """Add the manifest to what was sent and give the copy its name."""

    @abc.abstractmethod
    def fetch(self, name: str, files: Sequence[str], target: str) -> None:
        """Bring files of a published copy into a local directory."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove a published copy; the name goes first, so that a removal cut short leaves nothing that looks like a backup."""
