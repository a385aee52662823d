# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every module of the collection shares: connection options, the driver check and the way errors leave."""

from __future__ import annotations

import sys
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.community.postgresql.plugins.module_utils.postgres import postgres_common_argument_spec
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _connection
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import POLICY_CHOICES


def connection_spec() -> dict[str, Any]:
    """Return community.postgresql's connection options, with ``login_db`` and ``session_role``.

    The deprecated aliases of community.postgresql are left out: a new collection has nobody who types them.
    """
    spec = {name: dict(option) for name, option in postgres_common_argument_spec().items()}
    for option in spec.values():
        option.pop("deprecated_aliases", None)
        option.pop("aliases", None)
    spec["ca_cert"]["aliases"] = ["ssl_rootcert"]
    spec["login_db"] = {"type": "str", "required": True}
    spec["session_role"] = {"type": "str"}
    return spec


def policies_spec() -> dict[str, Any]:
    """Return the options that say what the data means: schema, names and policies."""
    spec: dict[str, Any] = {
        name: {"type": "str", "default": choices[0], "choices": list(choices)} for name, choices in POLICY_CHOICES.items()
    }
    spec["schema"] = {"type": "str", "default": "public"}
    spec["mapping"] = {"type": "dict"}
    spec["sample_size"] = {"type": "int", "default": 5}
    spec["mask_pii"] = {"type": "bool", "default": True}
    return spec


def locks_spec() -> dict[str, Any]:
    """Return the options that say how locks are waited for."""
    return {"lock_timeout": {"type": "int", "default": 1500}, "lock_retry_seconds": {"type": "float", "default": 60}}


class UnifiedUserModule(AnsibleModule):
    """An AnsibleModule with connection options merged in, and one way to run and to fail.

    Args:
        argument_spec: the module's own options.
        kwargs: as for AnsibleModule.
    """

    def __init__(self, argument_spec: dict[str, Any], **kwargs) -> None:
        super().__init__(argument_spec={**connection_spec(), **argument_spec}, **kwargs)

    def run(self, function: Callable[[UnifiedUserModule], dict[str, Any]], needs_driver: bool = True) -> None:
        """Call the function and leave the module with its result, or with its failure.

        Args:
            function: does the work.
            needs_driver: whether it opens sessions by psycopg2.
        """
        if needs_driver and _connection.psycopg2 is None:
            self.fail_json(
                msg=f"Failed to load the PostgreSQL driver: the Python library psycopg2 is missing for {sys.executable}. "
                "Install the package python3-psycopg2 there or set ansible_python_interpreter to a Python that has it."
            )
        driver_error = _connection.psycopg2.Error if _connection.psycopg2 else ()
        try:
            result = function(self)
        except UnifiedUserError as error:
            self.fail_json(msg=str(error), **error.details)
        except driver_error as error:
            self.fail_json(
                msg=f"Failed to finish {self._name}: {_connection.describe(error)}. "
                "Nothing of an open transaction was kept: put the cause right and run the same command again.",
                sqlstate=error.pgcode,
            )
        self.exit_json(**result)

    def connect(self, dbname: str | None = None) -> _connection.Database:
        """Open a session with the module's connection options."""
        return _connection.connect(self.params, dbname)
