# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the application of the unified model writes: users, roles, ownership, and what belongs to them.

It looks people up by identity key before it gives an address to somebody, as an application with one model of people does,
and gives ids that nobody has.
"""

from __future__ import annotations

from typing import Any

from tests.application_writes.kinds import email, flag, free_id, number, one_of, pick, registry, row_of
from tests.application_writes.session import Application, Expression
from tests.oracle.model import Row

UNIFIED_WRITES, write = registry()

PROFILE = ("name", "phone", "image", "updatedAt")
USER = ("id", "name", "password", "emailVerified", "phone", "image", "createdAt", "updatedAt")

_STUDIO = {"name": "Studio", "address": "Straße 1", "city": "Ulm", "phone": "0", "email": "s@x.de", "createdAt": 0, "updatedAt": 0}
_PEOPLE = ("users", "studio_owners", "customers")
_BELONGINGS = one_of("new_accounts", "new_sessions")


# --- people -----------------------------------------------------------------------------------------------------------


def _is_free(app: Application, address: str, but: str | None = None) -> bool:
    """Whether nobody else has the address, as the unified application sees it."""
    return all(app.key(user["email"]) != app.key(address) or user["id"] == but for user in app.rows("users"))


def _assign(app: Application, user: str, role: str, studio: str | None = None, by: str | None = None) -> None:
    row = {"id": free_id(app, f"role {role} {user[:20]}", "user_role_assignments"), "userId": user, "role": role, "studioId": studio}
    app.insert("user_role_assignments", {**row, **({"grantedBy": by} if app.has("user_role_assignments", "grantedBy") else {})})


def _own(app: Application, user: str, studio: str, primary: bool, accepted: int | None) -> None:
    row: dict[str, Any] = {"id": free_id(app, f"own {studio[:20]} {user[:20]}", "studio_ownership"), "userId": user, "studioId": studio}
    optional = {"isPrimary": primary, "canTransfer": primary, "invitedBy": None, "invitedAt": 0, "acceptedAt": accepted}
    app.insert("studio_ownership", {**row, **{name: value for name, value in optional.items() if app.has("studio_ownership", name)}})


def _sign_up(app: Application, row: Row, address: str, primary_role: str) -> str | None:
    if not _is_free(app, address):
        return None
    user = free_id(app, "u" + row["id"], *_PEOPLE)
    app.insert("users", {**row, "id": user, "email": address, "primaryRole": primary_role})
    return user


def _users(app: Application, role: str | None = None) -> list[Row]:
    holders = {row["userId"] for row in app.rows("user_role_assignments") if role in (None, row["role"])}
    return [user for user in app.rows("users") if role is None or user["id"] in holders]


@write(weight=5, row=row_of("users", *USER), address=email)
def user_signs_up(app: Application, row: Row, address: str) -> None:
    user = _sign_up(app, row, address, "CUSTOMER")
    if user:
        _assign(app, user, "CUSTOMER")


@write(weight=3, row=row_of("users", *USER), address=email)
def studio_owner_signs_up(app: Application, row: Row, address: str) -> None:
    user = _sign_up(app, row, address, "STUDIO_OWNER")
    if user:
        _assign(app, user, "STUDIO_OWNER")
        studio = free_id(app, "s" + row["id"], "studios")
        app.insert("studios", {**_STUDIO, "id": studio})
        _own(app, user, studio, True, 0)


@write(weight=1, row=row_of("users", *USER), address=email, role=one_of("SUPER_ADMIN", "GUEST"))
def user_without_a_legacy_table_is_made(app: Application, row: Row, address: str, role: str) -> None:
    user = _sign_up(app, row, address, role)
    if user:
        _assign(app, user, role)


@write(weight=5, n=number, values=row_of("users", *PROFILE))
def user_changes_profile(app: Application, n: int, values: Row) -> None:
    user = pick(app.rows("users"), n)
    if user:
        app.update("users", values, id=user["id"])


@write(weight=4, n=number, address=email)
def user_changes_email(app: Application, n: int, address: str) -> None:
    user = pick(app.rows("users"), n)
    if user and _is_free(app, address, but=user["id"]):
        app.update("users", {"email": address}, id=user["id"])


@write(weight=2, n=number, change=one_of("swapcase", "upper", "lower"))
def user_changes_spelling_of_email(app: Application, n: int, change: str) -> None:
    user = pick(app.rows("users"), n)
    if user:
        address = getattr(user["email"], change)()
        if _is_free(app, address, but=user["id"]):
            app.update("users", {"email": address}, id=user["id"])


@write(weight=1, n=number, m=number)
def two_users_swap_emails(app: Application, n: int, m: int) -> None:
    users = app.rows("users")
    one, other = pick(users, n), pick(users, m)
    if one and one is not other:
        app.update("users", {"email": "swapping@x.de"}, id=one["id"])
        app.update("users", {"email": one["email"]}, id=other["id"])
        app.update("users", {"email": other["email"]}, id=one["id"])


@write(weight=3, n=number, values=row_of("users", "password"))
def user_changes_password(app: Application, n: int, values: Row) -> None:
    user = pick(app.rows("users"), n)
    if user:
        app.update("users", values, id=user["id"])


@write(weight=2, n=number, values=row_of("users", "emailVerified"))
def user_is_verified(app: Application, n: int, values: Row) -> None:
    user = pick(app.rows("users"), n)
    if user:
        app.update("users", values, id=user["id"])


@write(weight=2, n=number, column=one_of("isSuspended", "isActive"), value=flag)
def user_is_suspended(app: Application, n: int, column: str, value: bool) -> None:
    user = pick(app.rows("users"), n)
    if user:
        app.update("users", {column: value}, id=user["id"])


@write(weight=1, n=number)
def user_is_made_an_administrator(app: Application, n: int) -> None:
    user = pick(app.rows("users"), n)
    if user and not app.rows("user_role_assignments", userId=user["id"], role="SUPER_ADMIN", studioId=None):
        _assign(app, user["id"], "SUPER_ADMIN", by="root")
        app.update("users", {"primaryRole": "SUPER_ADMIN"}, id=user["id"])


@write(weight=4, n=number, role=one_of("CUSTOMER", "STUDIO_OWNER"))
def role_is_granted(app: Application, n: int, role: str) -> None:
    user = pick(app.rows("users"), n)
    if user and not app.rows("user_role_assignments", userId=user["id"], role=role, studioId=None):
        _assign(app, user["id"], role, by="root")


@write(weight=1, n=number, m=number, role=one_of("CUSTOMER", "STUDIO_OWNER"))
def role_is_granted_for_one_studio(app: Application, n: int, m: int, role: str) -> None:
    user, studio = pick(app.rows("users"), n), pick(app.rows("studios"), m)
    if user and studio and not app.rows("user_role_assignments", userId=user["id"], role=role, studioId=studio["id"]):
        _assign(app, user["id"], role, studio["id"], by="root")


@write(weight=2, n=number)
def role_is_revoked(app: Application, n: int) -> None:
    role = pick(app.rows("user_role_assignments"), n)
    if role:
        app.delete("user_role_assignments", id=role["id"])


@write(weight=1, n=number, m=number)
def role_is_scoped_to_a_studio(app: Application, n: int, m: int) -> None:
    role, studio = pick(app.rows("user_role_assignments"), n), pick(app.rows("studios"), m)
    if role and studio and not app.rows("user_role_assignments", userId=role["userId"], role=role["role"], studioId=studio["id"]):
        app.update("user_role_assignments", {"studioId": studio["id"]}, id=role["id"])


def _erase(app: Application, user: Row) -> None:
    app.delete("new_bookings", customerId=user["id"])
    app.delete("users", id=user["id"])


@write(weight=3, n=number)
def user_is_erased(app: Application, n: int) -> None:
    """Bookings first: the schema lets nobody with bookings go."""
    user = pick(app.rows("users"), n)
    if user:
        _erase(app, user)


@write(weight=1, n=number)
def user_is_erased_without_a_thought(app: Application, n: int) -> None:
    """An error, where he has bookings."""
    user = pick(app.rows("users"), n)
    if user:
        app.delete("users", id=user["id"])


@write(weight=1)
def everybody_is_touched(app: Application) -> None:
    app.update("users", {"updatedAt": 1_700_000_000_000})


@write(weight=1, values=row_of("users", "password"))
def all_passwords_are_reset(app: Application, values: Row) -> None:
    app.update("users", values)


@write(weight=1, table=one_of("users", "user_role_assignments", "new_bookings", "new_accounts", "studio_ownership", "_UserFavorites"))
def nothing_is_changed(app: Application, table: str) -> None:
    name = "A" if table.startswith("_") else "id"
    app.update(table, {name: Expression(f"{{{name}}}")})


# --- bookings ---------------------------------------------------------------------------------------------------------


@write(weight=5, row=row_of("new_bookings"), n=number, own=flag, address=email)
def user_books(app: Application, row: Row, n: int, own: bool, address: str) -> None:
    user, studio = pick(app.rows("users"), n), pick(app.rows("studios"), row["studioId"])
    if user and studio:
        service = pick(app.rows("services", studioId=studio["id"]), row["serviceId"] or 0)
        given = {"studioId": studio["id"], "serviceId": service and service["id"], "customerId": user["id"]}
        given["customerEmail"] = user["email"] if own else address
        app.insert("new_bookings", {**row, **given, "id": free_id(app, "n" + row["id"], "bookings", "new_bookings")})


@write(weight=3, n=number, values=row_of("new_bookings", "status", "confirmedBy", "confirmedAt", "cancelledBy", "cancelledAt", "updatedAt"))
def booking_is_confirmed_or_cancelled(app: Application, n: int, values: Row) -> None:
    row = pick(app.rows("new_bookings"), n)
    if row:
        app.update("new_bookings", values, id=row["id"])


@write(weight=1, n=number, values=row_of("new_bookings", "healthConsentWithdrawnAt", "explicitHealthConsent", "healthConsentText"))
def consent_is_withdrawn(app: Application, n: int, values: Row) -> None:
    row = pick(app.rows("new_bookings"), n)
    if row and values:
        app.update("new_bookings", values, id=row["id"])


@write(weight=2, n=number, values=row_of("new_bookings", "customerName", "customerPhone", "message", "preferredDate", "createdAt", "updatedAt"))
def booking_is_edited(app: Application, n: int, values: Row) -> None:
    row = pick(app.rows("new_bookings"), n)
    if row:
        app.update("new_bookings", values, id=row["id"])


@write(weight=2, n=number, address=email)
def booking_gets_another_email(app: Application, n: int, address: str) -> None:
    row = pick(app.rows("new_bookings"), n)
    if row:
        app.update("new_bookings", {"customerEmail": address}, id=row["id"])


@write(weight=2, n=number, m=number)
def booking_gets_another_user(app: Application, n: int, m: int) -> None:
    row, user = pick(app.rows("new_bookings"), n), pick(app.rows("users"), m)
    if row:
        app.update("new_bookings", {"customerId": user["id"]}, id=row["id"])


@write(weight=2, n=number)
def booking_is_deleted(app: Application, n: int) -> None:
    row = pick(app.rows("new_bookings"), n)
    if row:
        app.delete("new_bookings", id=row["id"])


@write(weight=1, status=one_of("PENDING", "CONFIRMED", "CANCELLED"))
def all_bookings_change_status(app: Application, status: str) -> None:
    app.update("new_bookings", {"status": status})


@write(weight=1, status=one_of("PENDING", "CONFIRMED", "CANCELLED"))
def many_bookings_are_deleted(app: Application, status: str) -> None:
    app.delete("new_bookings", status=status)


# --- ownership --------------------------------------------------------------------------------------------------------


@write(weight=2, n=number, m=number, accepted=one_of(None, 1, 2, 3))
def ownership_is_added(app: Application, n: int, m: int, accepted: int | None) -> None:
    user, studio = pick(app.rows("users"), n), pick(app.rows("studios"), m)
    if user and studio and not app.rows("studio_ownership", userId=user["id"], studioId=studio["id"]):
        _own(app, user["id"], studio["id"], False, accepted)


@write(weight=1, n=number, accepted=one_of(1, 2, 3))
def ownership_is_accepted(app: Application, n: int, accepted: int) -> None:
    if app.has("studio_ownership", "acceptedAt"):
        row = pick(app.rows("studio_ownership", acceptedAt=None), n)
        if row:
            app.update("studio_ownership", {"acceptedAt": accepted}, id=row["id"])


@write(weight=2, n=number, m=number)
def ownership_is_transferred(app: Application, n: int, m: int) -> None:
    """The primary hands over to a user who may be an owner already, and goes."""
    studio = pick(app.rows("studios"), n)
    heirs = [user for user in _users(app, "STUDIO_OWNER") if studio]
    if heirs:
        heir = pick(heirs, m)
        app.delete("studio_ownership", studioId=studio["id"])
        _own(app, heir["id"], studio["id"], True, 1)


@write(weight=2, n=number)
def ownership_is_removed(app: Application, n: int) -> None:
    row = pick(app.rows("studio_ownership"), n)
    if row:
        app.delete("studio_ownership", id=row["id"])


@write(weight=1, n=number)
def primary_is_changed(app: Application, n: int) -> None:
    if app.has("studio_ownership", "isPrimary"):
        row = pick([row for row in app.rows("studio_ownership") if row.get("acceptedAt", 0) is not None], n)
        if row:
            app.update("studio_ownership", {"isPrimary": False}, studioId=row["studioId"])
            app.update("studio_ownership", {"isPrimary": True}, id=row["id"])


@write(weight=1, n=number)
def studio_closes(app: Application, n: int) -> None:
    row = pick(app.rows("studios"), n)
    if row:
        app.delete("studios", id=row["id"])


# --- favourites, accounts, sessions -----------------------------------------------------------------------------------


@write(weight=3, n=number, m=number)
def favourite_is_added(app: Application, n: int, m: int) -> None:
    user, studio = pick(app.rows("users"), n), pick(app.rows("studios"), m)
    if user and studio and not app.rows("_UserFavorites", A=studio["id"], B=user["id"]):
        app.insert("_UserFavorites", {"A": studio["id"], "B": user["id"]})


@write(weight=2, n=number)
def favourite_is_removed(app: Application, n: int) -> None:
    row = pick(app.rows("_UserFavorites"), n)
    if row:
        app.delete("_UserFavorites", **row)


def _belonging(app: Application, table: str, row: Row, n: int, unique: str) -> None:
    user = pick(app.rows("users"), n)
    if user:
        row = {**row, "id": free_id(app, "n" + row["id"], table, table.removeprefix("new_")), "userId": user["id"]}
        row[unique] = row["id"]
        app.insert(table, row)


@write(weight=2, row=row_of("new_accounts"), n=number)
def account_is_linked(app: Application, row: Row, n: int) -> None:
    _belonging(app, "new_accounts", row, n, "providerAccountId")


@write(weight=3, row=row_of("new_sessions"), n=number)
def session_begins(app: Application, row: Row, n: int) -> None:
    _belonging(app, "new_sessions", row, n, "sessionToken")


@write(weight=1, table=_BELONGINGS, n=number, account=row_of("new_accounts", "access_token"), session=row_of("new_sessions", "expires"))
def token_is_refreshed(app: Application, table: str, n: int, account: Row, session: Row) -> None:
    row = pick(app.rows(table), n)
    if row:
        app.update(table, account if table == "new_accounts" else session, id=row["id"])


@write(weight=2, table=_BELONGINGS, n=number)
def belonging_is_deleted(app: Application, table: str, n: int) -> None:
    row = pick(app.rows(table), n)
    if row:
        app.delete(table, id=row["id"])


@write(weight=1)
def all_sessions_end(app: Application) -> None:
    app.delete("new_sessions")
