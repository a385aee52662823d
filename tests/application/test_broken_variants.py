# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Each mistake that the reference application can be made to make, and exactly the cases that must notice it."""

from __future__ import annotations

import re

import pytest

from tests.app import application

SIGNED_IN = {
    "password_owner", "password_customer", "password_joined_owner", "password_joined_customer", "studio_creation", "own_bookings",
    "role_permissions", "audit_sign_in", "audit_writes", "wrong_password", "unknown_user", "suspended_user", "absorbed_password",
    "open_redirect", "foreign_booking",
}  # fmt: skip
LINKS = {"magic_link_used", "magic_link_expired", "magic_link_foreign"}

EXPECTED = {
    "adapter-of-legacy-tables": {"google_owner"},
    "bookings-of-everybody": {"own_bookings"},
    "booking-by-id-unchecked": {"foreign_booking"},
    "callback-url-unchecked": {"open_redirect"},
    "csrf-unchecked": {"csrf_missing"},
    "email-case-sensitive": {"letter_case"},
    "guest-without-user": {"guest_booking", "guest_booking_again"},
    "guest-user-each-time": {"guest_booking_again"},
    "guest-with-password": {"guest_booking"},
    "legacy-password-accepted": {"absorbed_password"},
    "login-without-audit": {"audit_sign_in"},
    "magic-link-never-expires": {"magic_link_expired"},
    "magic-link-not-sent": {"magic_link"} | LINKS,
    "magic-link-of-another": {"magic_link_foreign"},
    "magic-link-reusable": {"magic_link_used"},
    "magic-link-takes-no-token": {"magic_link_without_token", "magic_link_malformed"} | LINKS,
    # Whoever accepts every password records no failure, and answers a wrong one as no unknown person is answered.
    "password-unchecked": {"wrong_password", "unknown_user", "absorbed_password", "audit_sign_in"},
    "registration-without-role": {"registration_owner", "registration_customer"},
    "role-unchecked": {"role_permissions"},
    "route-missing": {"password_joined_owner", "role_permissions", "anonymous"},
    "session-of-before-forgotten": {"session_from_before"},
    "sign-in-throws": SIGNED_IN,
    "studio-without-ownership": {"studio_creation"},
    "suspension-ignored": {"suspended_user"},
    "unknown-user-answers-fast": {"unknown_user"},
    "unknown-user-told": {"unknown_user"},
}


def test_every_breakage_is_tried():
    listed = (application.APPLICATION / "lib" / "broken.ts").read_text().partition("BREAKAGES = [")[2].partition("]")[0]
    assert set(re.findall(r'"([a-z-]+)"', listed)) == set(EXPECTED)


@pytest.mark.one_major
@pytest.mark.parametrize("breakage", [name for name in EXPECTED if name != "unknown-user-answers-fast"])
def test_a_mistake_is_noticed_by_exactly_its_cases(site, breakage):
    before = site.contents()
    mail = {**site.options()["mail"], "timeout": 0.5 if breakage == "magic-link-not-sent" else 10}
    with site.broken(breakage):
        report = site.check(mail=mail)
    assert {case.name for case in report.failed} == EXPECTED[breakage], {case.name: case.detail for case in report.failed}
    assert not [case.name for case in report.cases if case.result == "skipped"]
    assert site.contents() == before
    if breakage == "adapter-of-legacy-tables":
        (case,) = report.failed
        assert case.detail.startswith("oauth_adapter_mismatch: Google's account of the owner is a row of new_accounts and is not found")
        assert "Give NextAuth an adapter over users, new_accounts and new_sessions" in case.detail


@pytest.mark.one_major
def test_a_mistake_by_the_environment_at_full_cost(site):
    """As an operator's candidate would be broken, with hashes as slow as in production."""
    breakage = "unknown-user-answers-fast"
    with site.beside(breakage, BROKEN=breakage, BCRYPT_COST="10") as (url, _log):
        report = site.check(url=url, google="redirect", bcrypt_cost=None)
    assert {case.name for case in report.failed} == EXPECTED[breakage], {case.name: case.detail for case in report.failed}
