# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the options that say how locks are waited for."""

from __future__ import annotations


class ModuleDocFragment:
    """How long writers may have to queue behind a lock, and how long it is tried for."""

    DOCUMENTATION = r"""
options:
  lock_timeout:
    description:
      - Longest wait for a lock in one attempt, in milliseconds. Attempts are repeated with growing pauses.
    type: int
    default: 1500
  lock_retry_seconds:
    description:
      - How long locks are attempted before the module gives up and names the session in the way, in seconds.
    type: float
    default: 60
"""
