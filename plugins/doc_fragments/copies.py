# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the option that lists further places for backups."""

from __future__ import annotations


class ModuleDocFragment:
    """The list of places."""

    DOCUMENTATION = r"""
options:
  copies:
    description:
      - Further places that hold copies of backups, the furthest away last.
    type: list
    elements: dict
    default: []
    suboptions:
      kind:
        description:
          - V(path) is a directory of this host on another file system, V(ssh) a directory of another host, V(s3) an S3-compatible bucket.
        type: str
        required: true
        choices: [path, ssh, s3]
      path:
        description:
          - The directory, which must exist. For V(s3) the prefix of the keys, none if not given.
        type: str
      allow_same_filesystem:
        description:
          - Whether a V(path) may be on the file system that the backup is on. One that is not mounted is on it, so this is refused.
        type: bool
        default: false
      host:
        description:
          - The host of V(ssh). Its key must be known, and the user needs C(sh), C(tar), C(find) and C(sha256sum) there.
        type: str
      user:
        description:
          - Who logs in by V(ssh); as ssh is configured if not given.
        type: str
      port:
        description:
          - The port of V(ssh); as ssh is configured if not given.
        type: int
      identity_file:
        description:
          - The private key for V(ssh); as ssh is configured if not given. It must have no passphrase, or an agent must know it.
        type: path
      known_hosts_file:
        description:
          - The file with the host's key; as ssh is configured if not given.
        type: path
      bucket:
        description:
          - The bucket of V(s3). The Python library boto3 is needed; it finds the credentials as it always does, so none is written here.
        type: str
      endpoint_url:
        description:
          - The URL of an S3-compatible service, if it is not that of AWS.
        type: str
      region:
        description:
          - The region of V(s3); as boto3 is configured if not given.
        type: str
      profile:
        description:
          - The profile of boto3 for V(s3).
        type: str
"""
