# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one exception of the collection."""

from __future__ import annotations


class UnifiedUserError(Exception):
    """A failure that tells the operator what to do.

    The message reads *Failed to <action>: <cause>. <next step>.*

    Args:
        action: what was tried, verb and object, e.g. ``"lock table studio_owners"``.
        cause: why it did not work. Never a value that might be a secret or a person.
        next_step: a command to run or a variable to set, as a sentence.
        details: the partial result; it is merged into what the module returns on failure.
    """

    def __init__(self, action: str, cause: str, next_step: str, **details) -> None:
        self.action = action
        self.cause = cause.strip().rstrip(".")
        self.next_step = next_step.strip().rstrip(".")
        self.details = details
        super().__init__(f"Failed to {action}: {self.cause}. {self.next_step}.")
