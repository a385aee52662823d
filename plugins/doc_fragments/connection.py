# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the connection options that every module has."""

from __future__ import annotations


class ModuleDocFragment:
    """The options are those of community.postgresql, whose argument specification the modules use."""

    DOCUMENTATION = r"""
options:
  login_db:
    description:
      - Name of the application's database.
    type: str
    required: true
  login_user:
    description:
      - The role to log in as.
      - Where E(PGUSER) is set on the target, that is the default.
    type: str
    default: postgres
  login_password:
    description:
      - The password of O(login_user).
    type: str
    default: ''
  login_host:
    description:
      - Host that runs the database. Empty means the unix socket.
    type: str
    default: ''
  login_unix_socket:
    description:
      - Directory of the unix socket, for connections without O(login_host).
    type: str
    default: ''
  login_port:
    description:
      - Port of the database server.
      - Where E(PGPORT) is set on the target, that is the default.
    type: int
    default: 5432
  ssl_mode:
    description:
      - Whether and how the connection is encrypted and the server's certificate checked, as libpq's C(sslmode).
    type: str
    default: prefer
    choices: [allow, disable, prefer, require, verify-ca, verify-full]
  ca_cert:
    description:
      - File with the certificates of the authorities that the server's certificate is checked against.
    type: str
    aliases: [ssl_rootcert]
  ssl_cert:
    description:
      - File with the client's certificate.
    type: path
  ssl_key:
    description:
      - File with the client's private key.
    type: path
  session_role:
    description:
      - Role to switch to after connecting. It must own the application's tables.
    type: str
  connect_params:
    description:
      - Further parameters of libpq, by name. They override the other options.
    type: dict
    default: {}
requirements:
  - psycopg2 >= 2.8 for the Python that runs the module
"""
