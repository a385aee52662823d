# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the application before the unified model writes: owners, customers, and what belongs to them."""

from __future__ import annotations

from tests.application_writes.kinds import any_email, email, flag, free_id, number, one_of, pick, registry, row_of, rows_of
from tests.application_writes.session import Application, Expression
from tests.oracle.model import Row

LEGACY_WRITES, write = registry()

PEOPLE = ("studio_owners", "customers")
people = one_of(*PEOPLE)
BELONGINGS = one_of("accounts", "sessions")
PROFILE = ("name", "phone", "image", "preferredLocale", "tags", "updatedAt")

# Columns that only the owner of a studio can make a mess of, and that no rule reads.
_STUDIO = {"name": "Studio", "address": "Straße 1", "city": "Ulm", "phone": "0", "email": "s@x.de", "createdAt": 0, "updatedAt": 0}
_SERVICE = {"name": "Massage", "price": 59.9, "duration": 60, "createdAt": 0, "updatedAt": 0}


# --- people -----------------------------------------------------------------------------------------------------------


def _sign_up(app: Application, table: str, row: Row, address: str) -> None:
    row = {**row, "email": address}
    row["id"] = free_id(app, row["id"], table)
    app.insert(table, row)


@write(weight=5, row=row_of("customers"), address=any_email)
def customer_signs_up(app: Application, row: Row, address: str) -> None:
    _sign_up(app, "customers", {**row, "id": "c" + row["id"]}, address)


@write(weight=3, row=row_of("studio_owners"), address=any_email)
def owner_signs_up(app: Application, row: Row, address: str) -> None:
    _sign_up(app, "studio_owners", {**row, "id": "o" + row["id"]}, address)


@write(weight=1, table=people, owner=row_of("studio_owners"), customer=row_of("customers"), address=email)
def person_signs_up_with_an_id_of_any_kind(app: Application, table: str, owner: Row, customer: Row, address: str) -> None:
    _sign_up(app, table, owner if table == "studio_owners" else customer, address)


@write(weight=3, row=row_of("customers"), n=number, change=one_of("same", "swapcase", "padded"))
def customer_signs_up_with_an_owners_address(app: Application, row: Row, n: int, change: str) -> None:
    owner = pick(app.rows("studio_owners"), n)
    if owner:
        address = {"same": owner["email"], "swapcase": owner["email"].swapcase(), "padded": f" {owner['email']} "}[change]
        _sign_up(app, "customers", {**row, "id": "c" + row["id"]}, address)


@write(weight=2, row=row_of("studio_owners"), n=number)
def owner_signs_up_with_a_customers_address(app: Application, row: Row, n: int) -> None:
    customer = pick(app.rows("customers"), n)
    if customer:
        _sign_up(app, "studio_owners", {**row, "id": "o" + row["id"]}, customer["email"])


@write(weight=2, row=row_of("customers"), n=number)
def customer_signs_up_with_a_guests_address(app: Application, row: Row, n: int) -> None:
    booking = pick(app.rows("bookings", customerId=None), n)
    if booking:
        _sign_up(app, "customers", {**row, "id": "c" + row["id"]}, booking["customerEmail"])


@write(weight=1, rows=rows_of("customers"))
def customers_are_imported_by_copy(app: Application, rows: list[Row]) -> None:
    given = []
    for n, row in enumerate(rows):
        given.append({**row, "id": free_id(app, f"copied {n}{row['id']}", "customers"), "email": f"{n}{row['id']}@copied.example"})
    app.copy("customers", given)


@write(weight=1, row=row_of("customers"), address=email, n=number)
def customer_is_upserted(app: Application, row: Row, address: str, n: int) -> None:
    there = pick(app.rows("customers"), n)
    address = there["email"] if there and n % 2 else address
    row = {**row, "id": free_id(app, "u" + row["id"], "customers"), "email": address}
    app.upsert("customers", row, conflict="email", values={"name": row["name"], "updatedAt": row["updatedAt"]})


@write(weight=4, n=number, values=row_of("customers", *PROFILE))
def customer_changes_profile(app: Application, n: int, values: Row) -> None:
    row = pick(app.rows("customers"), n)
    if row:
        app.update("customers", values, id=row["id"])


@write(weight=2, n=number, values=row_of("studio_owners", *PROFILE))
def owner_changes_profile(app: Application, n: int, values: Row) -> None:
    row = pick(app.rows("studio_owners"), n)
    if row:
        app.update("studio_owners", values, id=row["id"])


@write(weight=1, table=people, n=number, created=row_of("customers", "createdAt"))
def creation_is_backdated(app: Application, table: str, n: int, created: Row) -> None:
    row = pick(app.rows(table), n)
    if row:
        app.update(table, created, id=row["id"])


@write(weight=5, table=people, n=number, address=any_email)
def person_changes_email(app: Application, table: str, n: int, address: str) -> None:
    row = pick(app.rows(table), n)
    if row:
        app.update(table, {"email": address}, id=row["id"])


@write(weight=2, table=people, n=number, change=one_of("swapcase", "upper", "lower", "padded"))
def person_changes_spelling_of_email(app: Application, table: str, n: int, change: str) -> None:
    row = pick(app.rows(table), n)
    if row:
        address = f" {row['email']}" if change == "padded" else getattr(row["email"], change)()
        app.update(table, {"email": address}, id=row["id"])


@write(weight=2, table=people, n=number, m=number)
def person_takes_the_address_of_the_other_kind(app: Application, table: str, n: int, m: int) -> None:
    other = PEOPLE[table == PEOPLE[0]]
    row, there = pick(app.rows(table), n), pick(app.rows(other), m)
    if row and there:
        app.update(table, {"email": there["email"]}, id=row["id"])


@write(weight=1, table=people, n=number, address=email)
def person_changes_email_through_a_temporary_one(app: Application, table: str, n: int, address: str) -> None:
    row = pick(app.rows(table), n)
    if row:
        app.update(table, {"email": "temporary@x.de"}, id=row["id"])
        app.update(table, {"email": address}, id=row["id"])


@write(weight=2, table=people, n=number, m=number)
def two_people_swap_emails(app: Application, table: str, n: int, m: int) -> None:
    rows = app.rows(table)
    one, other = pick(rows, n), pick(rows, m)
    if one and one is not other:
        app.update(table, {"email": "swapping@x.de"}, id=one["id"])
        app.update(table, {"email": one["email"]}, id=other["id"])
        app.update(table, {"email": other["email"]}, id=one["id"])


@write(weight=1, n=number, m=number)
def an_owner_and_a_customer_swap_emails(app: Application, n: int, m: int) -> None:
    owner, customer = pick(app.rows("studio_owners"), n), pick(app.rows("customers"), m)
    if owner and customer:
        app.update("studio_owners", {"email": customer["email"]}, id=owner["id"])
        app.update("customers", {"email": owner["email"]}, id=customer["id"])


@write(weight=2, table=people, n=number, values=row_of("customers", "password", "updatedAt"))
def person_changes_password(app: Application, table: str, n: int, values: Row) -> None:
    row = pick(app.rows(table), n)
    if row:
        app.update(table, values, id=row["id"])


@write(weight=2, table=people, n=number, values=row_of("customers", "emailVerified"))
def person_is_verified(app: Application, table: str, n: int, values: Row) -> None:
    row = pick(app.rows(table), n)
    if row:
        app.update(table, values, id=row["id"])


@write(weight=2, n=number)
def customer_is_erased(app: Application, n: int) -> None:
    row = pick(app.rows("customers"), n)
    if row:
        app.delete("customers", id=row["id"])


@write(weight=2, n=number)
def owner_is_erased(app: Application, n: int) -> None:
    """The careful kind: his studios stay."""
    row = pick(app.rows("studio_owners"), n)
    if row:
        app.update("studios", {"ownerId": None}, ownerId=row["id"])
        app.delete("studio_owners", id=row["id"])


@write(weight=2, n=number)
def owner_is_erased_without_a_thought(app: Application, n: int) -> None:
    """The foreign key would take his studios along, and other people's bookings; sync releases the studios first."""
    row = pick(app.rows("studio_owners"), n)
    if row:
        with app.only_without_sync():
            app.update("studios", {"ownerId": None}, ownerId=row["id"])
        app.delete("studio_owners", id=row["id"])


@write(weight=1, n=number)
def studios_and_their_owner_are_erased(app: Application, n: int) -> None:
    """What the foreign keys' cascade does, in the order of an application that means it."""
    row = pick(app.rows("studio_owners"), n)
    if row:
        app.delete("studios", ownerId=row["id"])
        app.delete("studio_owners", id=row["id"])


@write(weight=1, table=people)
def everybody_is_touched(app: Application, table: str) -> None:
    app.update(table, {"updatedAt": 1_700_000_000_000})


@write(weight=1, table=people, function=one_of("lower", "upper", "btrim"))
def all_addresses_are_respelled(app: Application, table: str, function: str) -> None:
    app.update(table, {"email": Expression(f"{function}({{email}})")})


@write(weight=1, table=people, values=row_of("customers", "password"))
def all_passwords_are_reset(app: Application, table: str, values: Row) -> None:
    app.update(table, values)


@write(weight=1, n=number, m=number)
def several_customers_are_erased(app: Application, n: int, m: int) -> None:
    rows = app.rows("customers")
    if rows:
        app.delete("customers", id=[row["id"] for row in rows[min(n, m) : max(n, m) + 1]])


@write(weight=1, table=one_of("customers", "studio_owners", "bookings", "accounts", "studios", "_CustomerFavorites"))
def nothing_is_changed(app: Application, table: str) -> None:
    name = "A" if table.startswith("_") else "id"
    app.update(table, {name: Expression(f"{{{name}}}")})


# --- bookings ---------------------------------------------------------------------------------------------------------


def _book(app: Application, row: Row, customer: str | None, address: str) -> None:
    studio = pick(app.rows("studios"), row["studioId"])
    if studio:
        service = pick(app.rows("services", studioId=studio["id"]), row["serviceId"] or 0)
        given = {"studioId": studio["id"], "serviceId": service and service["id"], "customerId": customer, "customerEmail": address}
        app.insert("bookings", {**row, **given, "id": free_id(app, "b" + row["id"], "bookings", "new_bookings")})


@write(weight=3, row=row_of("bookings"), n=number, own=flag, address=any_email)
def customer_books(app: Application, row: Row, n: int, own: bool, address: str) -> None:
    customer = pick(app.rows("customers"), n)
    if customer:
        _book(app, row, customer["id"], customer["email"] if own else address)


@write(weight=5, row=row_of("bookings"), address=any_email)
def guest_books(app: Application, row: Row, address: str) -> None:
    _book(app, row, None, address)


@write(weight=1, rows=rows_of("bookings"), address=any_email)
def bookings_are_imported(app: Application, rows: list[Row], address: str) -> None:
    studios = app.rows("studios")
    given = []
    for n, row in enumerate(rows):
        studio = pick(studios, row["studioId"])
        if studio:
            row = {**row, "id": free_id(app, f"imported {n}{row['id']}", "bookings", "new_bookings"), "studioId": studio["id"]}
            given.append({**row, "serviceId": None, "customerId": None, "customerEmail": address if n else row["customerEmail"]})
    app.insert("bookings", *given)


@write(weight=3, n=number, values=row_of("bookings", "status", "updatedAt"))
def booking_changes_status(app: Application, n: int, values: Row) -> None:
    row = pick(app.rows("bookings"), n)
    if row:
        app.update("bookings", values, id=row["id"])


@write(n=number)
def booking_is_cancelled(app: Application, n: int) -> None:
    row = pick(app.rows("bookings"), n)
    if row:
        app.update("bookings", {"status": "CANCELLED"}, id=row["id"])


@write(n=number, values=row_of("bookings", "healthConsentWithdrawnAt", "explicitHealthConsent", "healthConsentText"))
def consent_is_withdrawn(app: Application, n: int, values: Row) -> None:
    row = pick(app.rows("bookings"), n)
    if row and values:
        app.update("bookings", values, id=row["id"])


@write(n=number, values=row_of("bookings", "customerName", "customerPhone", "message", "preferredDate", "createdAt", "updatedAt", "price", "confirmedAt"))
def booking_is_edited(app: Application, n: int, values: Row) -> None:
    row = pick(app.rows("bookings"), n)
    if row:
        app.update("bookings", values, id=row["id"])


@write(weight=3, n=number, address=any_email)
def booking_gets_another_email(app: Application, n: int, address: str) -> None:
    row = pick(app.rows("bookings"), n)
    if row:
        app.update("bookings", {"customerEmail": address}, id=row["id"])


@write(weight=3, n=number, m=number, none=flag)
def booking_gets_another_customer(app: Application, n: int, m: int, none: bool) -> None:
    row, customer = pick(app.rows("bookings"), n), None if none else pick(app.rows("customers"), m)
    if row:
        app.update("bookings", {"customerId": customer and customer["id"]}, id=row["id"])


@write(weight=1, n=number, m=number)
def booking_moves_to_another_studio(app: Application, n: int, m: int) -> None:
    row, studio = pick(app.rows("bookings"), n), pick(app.rows("studios"), m)
    if row and studio:
        app.update("bookings", {"studioId": studio["id"], "serviceId": None}, id=row["id"])


@write(weight=2, n=number)
def booking_is_deleted(app: Application, n: int) -> None:
    row = pick(app.rows("bookings"), n)
    if row:
        app.delete("bookings", id=row["id"])


@write(weight=1, n=number)
def a_guests_bookings_are_deleted(app: Application, n: int) -> None:
    row = pick(app.rows("bookings", customerId=None), n)
    if row:
        key = app.key(row["customerEmail"])
        app.delete("bookings", id=[other["id"] for other in app.rows("bookings", customerId=None) if app.key(other["customerEmail"]) == key])


@write(weight=1, status=one_of("PENDING", "CONFIRMED", "CANCELLED"))
def all_bookings_change_status(app: Application, status: str) -> None:
    app.update("bookings", {"status": status})


@write(weight=1, status=one_of("PENDING", "CONFIRMED", "CANCELLED"))
def many_bookings_are_deleted(app: Application, status: str) -> None:
    app.delete("bookings", status=status)


@write(weight=1, address=any_email)
def all_bookings_get_one_email(app: Application, address: str) -> None:
    app.update("bookings", {"customerEmail": address})


# --- studios, favourites, accounts, sessions --------------------------------------------------------------------------


@write(weight=2, name=row_of("bookings", "id"), n=number, owned=flag)
def studio_opens(app: Application, name: Row, n: int, owned: bool) -> None:
    owner = pick(app.rows("studio_owners"), n) if owned else None
    app.insert("studios", {**_STUDIO, "id": free_id(app, "s" + name["id"], "studios"), "ownerId": owner and owner["id"]})


@write(weight=1, n=number)
def studio_closes(app: Application, n: int) -> None:
    row = pick(app.rows("studios"), n)
    if row:
        app.delete("studios", id=row["id"])


@write(weight=3, n=number, m=number, none=flag)
def studio_changes_hands(app: Application, n: int, m: int, none: bool) -> None:
    studio, owner = pick(app.rows("studios"), n), None if none and m % 2 else pick(app.rows("studio_owners"), m)
    if studio:
        app.update("studios", {"ownerId": owner and owner["id"]}, id=studio["id"])


@write(weight=1, n=number)
def all_studios_change_hands(app: Application, n: int) -> None:
    owner = pick(app.rows("studio_owners"), n)
    app.update("studios", {"ownerId": owner and owner["id"]})


@write(weight=1, n=number, name=row_of("bookings", "id"))
def service_is_offered(app: Application, n: int, name: Row) -> None:
    studio = pick(app.rows("studios"), n)
    if studio:
        app.insert("services", {**_SERVICE, "id": free_id(app, "v" + name["id"], "services"), "studioId": studio["id"]})


@write(weight=1, n=number)
def service_is_withdrawn(app: Application, n: int) -> None:
    row = pick(app.rows("services"), n)
    if row:
        app.delete("services", id=row["id"])


@write(weight=3, n=number, m=number)
def favourite_is_added(app: Application, n: int, m: int) -> None:
    customer, studio = pick(app.rows("customers"), n), pick(app.rows("studios"), m)
    if customer and studio and not app.rows("_CustomerFavorites", A=customer["id"], B=studio["id"]):
        app.insert("_CustomerFavorites", {"A": customer["id"], "B": studio["id"]})


@write(weight=2, n=number)
def favourite_is_removed(app: Application, n: int) -> None:
    row = pick(app.rows("_CustomerFavorites"), n)
    if row:
        app.delete("_CustomerFavorites", **row)


@write(weight=1, n=number)
def favourites_are_replaced(app: Application, n: int) -> None:
    """As Prisma's `set` does it: all go, then all come, in one transaction."""
    customer = pick(app.rows("customers"), n)
    if customer:
        app.delete("_CustomerFavorites", A=customer["id"])
        app.insert("_CustomerFavorites", *({"A": customer["id"], "B": studio["id"]} for studio in app.rows("studios")))


def _belonging(app: Application, table: str, row: Row, n: int, unique: str) -> None:
    owner = pick(app.rows("studio_owners"), n)
    if owner:
        row = {**row, "id": free_id(app, table[0] + row["id"], table, f"new_{table}"), "userId": owner["id"]}
        row[unique] = free_id(app, row["id"], table)
        app.insert(table, row)


@write(row=row_of("accounts"), n=number)
def account_is_linked(app: Application, row: Row, n: int) -> None:
    _belonging(app, "accounts", row, n, "providerAccountId")


@write(row=row_of("sessions"), n=number)
def session_begins(app: Application, row: Row, n: int) -> None:
    _belonging(app, "sessions", row, n, "sessionToken")


@write(weight=1, table=BELONGINGS, n=number, accounts=row_of("accounts", "access_token", "expires_at"), sessions=row_of("sessions", "expires"))
def token_is_refreshed(app: Application, table: str, n: int, accounts: Row, sessions: Row) -> None:
    row = pick(app.rows(table), n)
    if row:
        app.update(table, accounts if table == "accounts" else sessions, id=row["id"])


@write(weight=1, table=BELONGINGS, n=number, m=number)
def belonging_moves_to_another_owner(app: Application, table: str, n: int, m: int) -> None:
    row, owner = pick(app.rows(table), n), pick(app.rows("studio_owners"), m)
    if row and owner:
        app.update(table, {"userId": owner["id"]}, id=row["id"])


@write(table=BELONGINGS, n=number)
def belonging_is_deleted(app: Application, table: str, n: int) -> None:
    row = pick(app.rows(table), n)
    if row:
        app.delete(table, id=row["id"])
