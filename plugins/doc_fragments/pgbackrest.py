# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the modules that work with pgBackRest have in common."""

from __future__ import annotations


class ModuleDocFragment:
    """The option ``pgbackrest``."""

    DOCUMENTATION = r"""
options:
  pgbackrest:
    description:
      - Which repository of pgBackRest, for backups that it takes. It must be configured on the host that the module runs on, which is
        the server's own.
      - When a backup is read again, what is not set here is taken from its manifest.
    type: dict
    default: {}
    suboptions:
      stanza:
        description: The stanza of the server.
        type: str
      type:
        description: Whether the backup set holds everything, or what has changed since the last full one.
        type: str
        default: full
        choices: [full, diff]
      config:
        description: The configuration file. pgBackRest's own default if not given.
        type: path
      repo:
        description: The number of the repository, as in C(repo1-path). The first that is configured, if not given.
        type: int
      user:
        description:
          - The user of the operating system that pgBackRest and scratch servers run as; the module runs as that user or as root.
          - If not given, the owner of the server's data directory where root runs the module, else whoever runs it.
        type: str
      archive_timeout:
        description: How long a WAL segment may take into the archive, in seconds.
        type: int
        default: 60
      scratch_directory:
        description:
          - The directory that a server is restored into; it must not exist. It needs room for the whole server.
          - Beside the data directory of the original, with C(_unified_user) appended, if not given.
        type: path
"""
