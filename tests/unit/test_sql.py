# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Composing SQL, errors and connection arguments: the parts that need no server."""

from __future__ import annotations

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import connection_arguments
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import all_of, comma, compose
from psycopg2 import sql


def test_template_is_composed_of_what_its_names_stand_for():
    composed = compose("SELECT {a.b} FROM {a}", {"a.b": sql.Identifier("B"), "a": sql.Identifier("s", "A")})
    assert composed.seq == [sql.SQL("SELECT "), sql.Identifier("B"), sql.SQL(" FROM "), sql.Identifier("s", "A")]


def test_unknown_name_in_a_template_is_an_error():
    with pytest.raises(KeyError):
        compose("SELECT {nothing}", {})


def test_lists_and_conditions():
    assert all_of([]) == sql.SQL("TRUE")
    assert comma([sql.SQL("a"), sql.SQL("b")]) == sql.SQL(", ").join([sql.SQL("a"), sql.SQL("b")])


def test_error_tells_action_cause_and_next_step_once():
    error = UnifiedUserError("lock table bookings", "it is held.", "Wait.", blockers=["pid 1"])
    assert str(error) == "Failed to lock table bookings: it is held. Wait."
    assert error.details == {"blockers": ["pid 1"]}


def test_connection_options_become_those_of_the_driver():
    options = {
        "login_host": "", "login_unix_socket": "/run/postgresql", "login_user": "postgres", "login_password": "", "login_port": 5433,
        "login_db": "massava", "ssl_mode": "prefer", "ca_cert": None, "connect_params": {"options": "-c geqo=off"},
    }  # fmt: skip
    arguments = connection_arguments(options)
    assert arguments["host"] == "/run/postgresql" and arguments["dbname"] == "massava" and arguments["options"] == "-c geqo=off"
    assert "password" not in arguments and "sslrootcert" not in arguments
    assert arguments["application_name"] == "unified_user"
    assert connection_arguments({**options, "login_host": "db.example.com"}, "postgres")["host"] == "db.example.com"
    assert connection_arguments(options, "postgres")["dbname"] == "postgres"
