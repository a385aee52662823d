# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Copies of backups in an S3-compatible bucket, by boto3, the library that the collection amazon.aws works with."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from typing import Any, Iterator, Sequence

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import MANIFEST
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_place import NAME, Place

try:
    import boto3
    import botocore.exceptions
except ImportError:  # reported when a bucket is asked for
    boto3 = None

_BLOCK = 1 << 20
_ADVICE = "Check bucket, endpoint_url, region, the credentials that boto3 finds (environment, profile, role of the host) and what they allow"


class S3Place(Place):
    """A bucket, or what lies below a prefix in it. A copy is published by its manifest, which is written last and removed first.

    Args:
        options: ``bucket``, and, if given, ``path`` (the prefix), ``endpoint_url``, ``region``, ``profile``.

    Raises:
        UnifiedUserError: boto3 is not there, or it does not know the profile.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._bucket, prefix = options["bucket"], (options.get("path") or "").strip("/")
        self._prefix = prefix + "/" if prefix else ""
        self.label = f"s3 {self._bucket}/{prefix}".rstrip("/")
        if boto3 is None:
            raise self.error(
                "keep a copy of a backup",
                f"the Python library boto3 is missing for {sys.executable}",
                "Install the package python3-boto3 there or set ansible_python_interpreter to a Python that has it",
            )
        with self._explaining("open a session"):
            session = boto3.Session(profile_name=options.get("profile") or None, region_name=options.get("region") or None)
            self._client = session.client("s3", endpoint_url=options.get("endpoint_url") or None)

    def _key(self, name: str, file: str) -> str:
        return f"{self._prefix}{name}/{file}"

    def prepare(self, backup_path: str) -> None:
        """See `Place`: whether it can be reached shows when it is asked for its names."""

    def names(self) -> list[str]:
        """See `Place`."""
        suffix = f"/{MANIFEST}"
        found = [key[len(self._prefix) : -len(suffix)] for key in self._keys(self._prefix) if key.endswith(suffix)]
        return sorted(name for name in found if "/" not in name and NAME.fullmatch(name))

    def _keys(self, prefix: str) -> list[str]:
        with self._explaining("look for backups"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def read(self, name: str, file: str) -> bytes | None:
        """See `Place`."""
        with self._explaining(f"read {name}/{file}"):
            try:
                return self._client.get_object(Bucket=self._bucket, Key=self._key(name, file))["Body"].read()
            except self._client.exceptions.NoSuchKey:
                return None

    def write(self, name: str, file: str, content: bytes) -> None:
        """See `Place`."""
        with self._explaining(f"write {name}/{file}"):
            self._client.put_object(Bucket=self._bucket, Key=self._key(name, file), Body=content)

    def send(self, backup_path: str, name: str, files: Sequence[str]) -> None:
        """See `Place`."""
        self._delete(self._keys(self._key(name, "")))
        with self._explaining(f"write a copy of {name}"):
            for file in files:
                self._client.upload_file(os.path.join(backup_path, file), self._bucket, self._key(name, file))

    def digests(self, name: str, files: Sequence[str], published: bool) -> dict[str, str]:
        """See `Place`. A bucket computes nothing, so the bytes are read back."""
        present = set(self._keys(self._key(name, "")))
        found = {}
        for file in files:
            if self._key(name, file) in present:
                with self._explaining(f"read {name}/{file}"):
                    digest = hashlib.sha256()
                    for block in self._client.get_object(Bucket=self._bucket, Key=self._key(name, file))["Body"].iter_chunks(_BLOCK):
                        digest.update(block)
                    found[file] = digest.hexdigest()
        return found

    def publish(self, name: str, manifest_file: str, manifest: bytes) -> None:
        """See `Place`."""
        self.write(name, manifest_file, manifest)

    def fetch(self, name: str, files: Sequence[str], target: str) -> None:
        """See `Place`."""
        present = set(self._keys(self._key(name, "")))
        with self._explaining(f"bring back the copy of {name}"):
            for file in files:
                if self._key(name, file) in present:
                    path = os.path.join(target, file)
                    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                    self._client.download_file(self._bucket, self._key(name, file), path)

    def remove(self, name: str) -> None:
        """See `Place`."""
        self._delete([self._key(name, MANIFEST)])
        self._delete(self._keys(self._key(name, "")))

    def _delete(self, keys: Sequence[str]) -> None:
        with self._explaining("remove a copy"):
            for key in keys:
                self._client.delete_object(Bucket=self._bucket, Key=key)

    @contextlib.contextmanager
    def _explaining(self, action: str) -> Iterator[None]:
        try:
            yield
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, boto3.exceptions.Boto3Error, OSError) as error:
            raise self.error(action, " ".join(str(error).split()), _ADVICE) from error
