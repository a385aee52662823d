# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The collection's version, for what a module writes down on the host, where galaxy.yml is not (a test compares the two)."""

from __future__ import annotations

COLLECTION_VERSION = "0.1.0"
