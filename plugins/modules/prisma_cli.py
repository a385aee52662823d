#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run the Prisma CLI of a release of the application, with what it says turned into results and explanations."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prisma_cli
short_description: Run the Prisma CLI that a release of the application brings
version_added: 0.1.0
description:
  - Runs the CLI that the release's lock file pins, C(node_modules/.bin/prisma) or C(npx --no-install prisma), in the release directory
    on the host that has it. Never one that would have to be fetched.
  - The address and the password of the database reach it by C(DATABASE_URL) in its environment, never as an argument.
  - Its output is not repeated, as it may hold rows. Codes (C(P3009)), names of migrations and PostgreSQL's messages without their
    values are taken from it.
  - Every session of it has a C(lock_timeout), so that a migration does not queue the application's writers behind its locks.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: partial
    details: With O(command=compare), O(command=script) and O(command=version) nothing is changed anyway. The others are skipped.
  diff_mode:
    support: none
options:
  release_directory:
    description:
      - Directory of the release.
    type: path
    required: true
  command:
    description:
      - V(deploy) applies the pending migrations (C(prisma migrate deploy)).
      - V(generate) makes the release's client (C(prisma generate)).
      - V(compare) tells whether the database is what C(schema.prisma) says (C(prisma migrate diff --exit-code)).
      - V(script) returns the SQL that leads from the database to C(schema.prisma) (C(prisma migrate diff --script)), for a new migration.
      - V(version) only tells which CLI there is.
    type: str
    choices: [deploy, generate, compare, script, version]
    default: deploy
  schema_path:
    description:
      - Where the release keeps its schema, relative to O(release_directory). A file, or a directory of files.
    type: str
    default: prisma/schema.prisma
  schema:
    description:
      - The database schema that the migrations fill.
    type: str
    default: public
  lock_timeout:
    description:
      - Longest wait for a lock, in milliseconds, also for Prisma's own.
    type: int
    default: 1500
  environment:
    description:
      - Variables for the CLI. None that is secret - a release that reads secrets has them in a file of its own.
    type: dict
    default: {}
  timeout:
    description:
      - How long a command may take before it is ended, in seconds.
    type: float
    default: 600
notes:
  - psycopg2 is not needed. Of the connection options O(ssl_cert), O(ssl_key) and O(connect_params) cannot be told to Prisma and are refused.
  - Some versions of Prisma send a migration statement by statement. One that fails may then be half applied, which this module cannot
    know. M(rnltlabs.unified_user.prisma_migration) with O(rnltlabs.unified_user.prisma_migration#module:state=status) tells.
seealso:
  - module: rnltlabs.unified_user.prisma_migration
"""

EXAMPLES = r"""
- name: Deploy with the release's own CLI
  rnltlabs.unified_user.prisma_cli:
    release_directory: /srv/massava/current
    login_host: db1.example.com
    login_db: massava
    login_user: massava
    login_password: "{{ unified_user_login_password }}"
"""

RETURN = r"""
version:
  description: The version of the CLI, where it is the release's own.
  returned: success
  type: str
  sample: 6.19.3
applied:
  description: Migrations that this run applied, in order.
  returned: with O(command=deploy)
  type: list
  elements: str
equal:
  description: Whether the database is what the schema file says.
  returned: with O(command=compare)
  type: bool
differences:
  description:
    - What is different, as the statements by which Prisma would make the database equal to the schema file.
  returned: with O(command=compare)
  type: list
  elements: str
left_alone:
  description: Indexes that are not in the schema file because the sync made them. They count as no difference, and go with the sync.
  returned: with O(command=compare)
  type: list
  elements: str
script:
  description: The SQL. Empty where nothing is to be done.
  returned: with O(command=script)
  type: str
code:
  description: Prisma's code for the failure, or empty.
  returned: on failure
  type: str
  sample: P3009
failed_migration:
  description: The migration that failed, or empty.
  returned: on failure
  type: str
duration_ms:
  description: Duration of the command, in milliseconds.
  returned: with O(command=deploy) and O(command=generate)
  type: int
"""

from urllib.parse import quote

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _prisma_cli
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule

COMMANDS = {"deploy": _prisma_cli.deploy, "generate": _prisma_cli.generate, "compare": _prisma_cli.compare, "script": _prisma_cli.script}
READING = ("compare", "script")


def run(module: UnifiedUserModule) -> dict:
    """Do what the options ask for and return what the module returns."""
    parameters = module.params
    # Encoded it is another text, which Ansible would not know for a secret.
    if parameters["login_password"]:
        module.no_log_values.add(quote(parameters["login_password"], safe=""))
    release = _prisma_cli.Release(
        parameters["release_directory"],
        parameters["schema_path"],
        {name: str(value) for name, value in parameters["environment"].items()},
        parameters["timeout"],
    )
    command = parameters["command"]
    url = _prisma_cli.database_url(parameters)
    result = {"changed": False, "version": release.version()}
    if command == "version" or (module.check_mode and command not in READING):
        release.program()
        return result
    return {**result, **COMMANDS[command](release, url)}


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(
        argument_spec={
            "release_directory": {"type": "path", "required": True},
            "command": {"type": "str", "default": "deploy", "choices": ["deploy", "generate", "compare", "script", "version"]},
            "schema_path": {"type": "str", "default": "prisma/schema.prisma"},
            "schema": {"type": "str", "default": "public"},
            "lock_timeout": {"type": "int", "default": 1500},
            "environment": {"type": "dict", "default": {}},
            "timeout": {"type": "float", "default": 600},
        },
        supports_check_mode=True,
    )
    module.run(run, needs_driver=False)


if __name__ == "__main__":
    main()
