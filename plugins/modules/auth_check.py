#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prove sign-in on a running application: what must work, and what must be refused."""

from __future__ import annotations

DOCUMENTATION = r"""
module: auth_check
short_description: Prove sign-in of the running application, and what it must refuse
version_added: 0.1.0
description:
  - Drives the application over HTTP as a browser does, with cookies, CSRF tokens, redirects, PKCE and the base path, and compares what
    happened with the rows of the database. Each case is named, timed and reported.
  - Must work - sign-in of owners, customers and people who are both, by password, by magic link and through Google; sessions from before
    the switch; guests' bookings; registration; new studios; own bookings; roles; the audit log.
  - Must be refused - wrong passwords and unknown people, with the same answer in about the same time; suspended people; magic links
    without a token, used, too old, somebody else's or malformed; the password of an absorbed, unverified row; forms without a CSRF
    token; redirects to other sites; other people's bookings; a second account for another spelling of an e-mail.
  - It makes test accounts of its own, marked in every row and with passwords that nobody knows, and removes every trace of them
    afterwards, also when it fails. What a run left that was killed, the next one removes.
  - An endpoint that is not there is a failure that names the path. A case that does not apply is switched off with a reason.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.connection
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: partial
    details: Runs the cases that only read, as with O(read_only=true).
  diff_mode:
    support: none
options:
  url:
    description:
      - Where browsers find the application, with its base path, for example C(https://www.example.com/termine).
    type: str
    required: true
  connect_to:
    description:
      - Where to reach it instead, for example C(http://127.0.0.1:3999) for a candidate on a spare port. Requests then look as if a
        proxy for O(url) had sent them.
    type: str
    default: ''
  locale:
    description:
      - The language in the application's paths.
    type: str
    default: de
  timeout:
    description:
      - Longest wait for one answer, in seconds.
    type: float
    default: 20
  validate_certs:
    description:
      - Whether the certificate of the application, and of a test issuer, is checked.
    type: bool
    default: true
  tls_ca_file:
    description:
      - File with the certificates of further authorities that it is checked against.
    type: path
  paths:
    description:
      - Where things are, below O(url), over the defaults. C({locale}) and C({id}) are filled in. Known are C(health), C(auth),
        C(bookings), C(booking), C(studios), C(user_studios), C(register_owner), C(register_customer), C(magic_link_request),
        C(magic_link_verify), C(dashboard) and C(studio_dashboard).
    type: dict
    default: {}
  providers:
    description:
      - What the ways in are called, over the defaults. Known are C(owner), C(customer) (both C(credentials)), C(magic_link)
        (C(magic-link)) and C(google).
    type: dict
    default: {}
  audit_actions:
    description:
      - What the audit log calls C(sign_in), C(sign_in_failed), C(magic_link), C(booking) and C(studio), over the defaults.
    type: dict
    default: {}
  session_cookie:
    description:
      - Name of the session's cookie, without the prefix that it has over HTTPS.
    type: str
    default: authjs.session-token
  token_parameter:
    description:
      - Name of the parameter of a magic link that holds its token.
    type: str
    default: token
  google:
    description:
      - V(test_issuer) where the application's Google is a test issuer, whose form takes any name for the subject and the e-mail, and any
        password. V(redirect) where it is the real one; then only the request to it is looked at.
    type: str
    choices: [test_issuer, redirect]
    default: test_issuer
  google_client_id:
    description:
      - The client id that the request to Google must name. Empty for any.
    type: str
    default: ''
  mail:
    description:
      - Where magic links arrive.
    type: dict
    default: {}
    suboptions:
      source:
        description:
          - V(smtp) receives the mail itself, where the application's mail service is O(mail.host) and O(mail.port). Mail for
            other people is refused for the time being, so that it is sent again later.
          - V(log) reads the link in the application's log, where development mode writes it.
          - V(database) reads the token in C(magic_link_tokens).
        type: str
        choices: [smtp, log, database]
        default: smtp
      host:
        description:
          - Address to receive mail on.
        type: str
        default: 127.0.0.1
      port:
        description:
          - Port to receive mail on.
        type: int
        default: 1025
      path:
        description:
          - The log file, on the host that runs the module.
        type: path
      timeout:
        description:
          - Longest wait for a mail, in seconds.
        type: float
        default: 10
  previous_url:
    description:
      - Where the release before is found, to try a session that was made there. Empty to try a session that the database keeps.
    type: str
    default: ''
  previous_connect_to:
    description:
      - Where to reach it instead, as O(connect_to).
    type: str
    default: ''
  previous_providers:
    description:
      - What the ways in of the release before are called, as O(providers).
    type: dict
    default: {owner: studio-credentials, customer: customer-credentials}
  email_domain:
    description:
      - Domain of the test accounts' addresses. Mail for it must not reach anybody.
    type: str
    default: auth-check.invalid
  bcrypt_cost:
    description:
      - Cost of the bcrypt hashes of the test accounts. By default that of most users, so that times can be compared.
    type: int
  switched_off:
    description:
      - Cases that do not apply, by name, each with the reason. The report shows it.
    type: dict
    default: {}
  read_only:
    description:
      - Runs only the cases that write nothing. There are no test accounts then, and no connection to the database.
    type: bool
    default: false
  fail_on_failure:
    description:
      - Whether a failed case fails the module. If not, RV(passed) and RV(failed_cases) tell.
    type: bool
    default: true
  schema:
    description:
      - Database schema of the application's tables.
    type: str
    default: public
  mapping:
    description:
      - What the application calls its tables and columns, where it differs, as in M(rnltlabs.unified_user.unified_user_transform).
    type: dict
notes:
  - The module runs on a host that reaches both the application and its database.
  - A bcrypt hash needs the Python library bcrypt there, or a C(crypt(3)) that knows bcrypt, as Debian, Ubuntu and RHEL have.
  - Its browser calls itself C(unified-user-auth-check), and comes from an address of documentation (C(2001:db8::/32)) where the
    application believes C(X-Forwarded-For).
"""

EXAMPLES = r"""
- name: Prove the candidate before it goes live
  rnltlabs.unified_user.auth_check:
    login_db: massava
    url: https://staging.example.com/termine
    connect_to: http://127.0.0.1:3999
    mail: {source: database}
    google: redirect
    switched_off:
      audit_sign_in: the application does not record sign-ins yet

- name: Look at production without leaving a trace
  rnltlabs.unified_user.auth_check:
    login_db: massava
    url: https://www.example.com
    read_only: true
"""

RETURN = r"""
passed:
  description: Whether no case failed, and at least one was tried.
  returned: success and failure
  type: bool
cases:
  description: What became of each case.
  returned: success and failure
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      sample: magic_link_without_token
    kind:
      description: V(must work) or V(must be refused).
      type: str
    title:
      description: What it is about.
      type: str
    result:
      description: V(passed), V(failed) or V(skipped).
      type: str
    detail:
      description: What happened instead, a remark, or why it was skipped. Never a person or a secret.
      type: str
    duration_ms:
      description: How long it took, in milliseconds.
      type: int
counts:
  description: Number of cases by result.
  returned: success and failure
  type: dict
  sample: {passed: 33, failed: 0, skipped: 0}
failed_cases:
  description: Names of the failed cases.
  returned: success and failure
  type: list
  elements: str
removed_rows:
  description: How many rows of the test accounts, and of what they did, were removed.
  returned: success and failure
  type: int
leftover_runs:
  description: How many earlier runs had left something that was removed, too.
  returned: success and failure
  type: int
duration_ms:
  description: Duration of the whole, in milliseconds.
  returned: success and failure
  type: int
"""

import dataclasses
import time

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check import Settings, check_sign_in, heed_signals
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._module import UnifiedUserModule

MAIL = {
    "source": {"type": "str", "default": "smtp", "choices": ["smtp", "log", "database"]},
    "host": {"type": "str", "default": "127.0.0.1"},
    "port": {"type": "int", "default": 1025},
    "path": {"type": "path"},
    "timeout": {"type": "float", "default": 10},
}
ARGUMENTS = {
    "url": {"type": "str", "required": True},
    "connect_to": {"type": "str", "default": ""},
    "locale": {"type": "str", "default": "de"},
    "timeout": {"type": "float", "default": 20},
    "validate_certs": {"type": "bool", "default": True},
    "tls_ca_file": {"type": "path"},
    "paths": {"type": "dict", "default": {}},
    "providers": {"type": "dict", "default": {}},
    "audit_actions": {"type": "dict", "default": {}},
    "session_cookie": {"type": "str", "default": "authjs.session-token"},
    "token_parameter": {"type": "str", "default": "token", "no_log": False},
    "google": {"type": "str", "default": "test_issuer", "choices": ["test_issuer", "redirect"]},
    "google_client_id": {"type": "str", "default": ""},
    "mail": {"type": "dict", "default": {}, "options": MAIL},
    "previous_url": {"type": "str", "default": ""},
    "previous_connect_to": {"type": "str", "default": ""},
    "previous_providers": {"type": "dict", "default": {"owner": "studio-credentials", "customer": "customer-credentials"}},
    "email_domain": {"type": "str", "default": "auth-check.invalid"},
    "bcrypt_cost": {"type": "int"},
    "switched_off": {"type": "dict", "default": {}},
    "read_only": {"type": "bool", "default": False},
    "fail_on_failure": {"type": "bool", "default": True},
    "schema": {"type": "str", "default": "public"},
    "mapping": {"type": "dict"},
}


def run(module: UnifiedUserModule) -> dict:
    """Check sign-in and return what the module returns."""
    heed_signals()
    started = time.monotonic()
    names = {field.name for field in dataclasses.fields(Settings)} - {"ca_file", "read_only"}
    read_only = module.params["read_only"] or module.check_mode
    options = {name: module.params[name] for name in names}
    settings = Settings(**options, ca_file=module.params["tls_ca_file"] or "", read_only=read_only)
    settings.require()
    database = None if read_only else module.connect()
    try:
        report = check_sign_in(settings, database)
    finally:
        if database:
            database.close()
    duration = round((time.monotonic() - started) * 1000)
    if module.params["fail_on_failure"]:
        report.require(duration_ms=duration)
    return {"changed": False, **report.as_dict(), "duration_ms": duration}


def main() -> None:
    """Run the module."""
    module = UnifiedUserModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    module.run(run, needs_driver=not (module.params["read_only"] or module.check_mode))


if __name__ == "__main__":
    main()
