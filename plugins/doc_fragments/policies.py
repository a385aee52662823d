# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the options that say what the data means."""

from __future__ import annotations


class ModuleDocFragment:
    """One option for each decision that only the operator can take, the schema and the names in it."""

    DOCUMENTATION = r"""
options:
  schema:
    description:
      - The database schema that holds the application's tables.
    type: str
    default: public
  mapping:
    description:
      - What the application calls its tables and columns, where it differs from the default names.
      - >-
        Written as C({tables: {<logical table>: {name: <actual table>, columns: {<logical column>: <actual column>}}}}).
      - Without an entry a table has its logical name, and a column its logical name or the snake_case form of it.
    type: dict
  email_match:
    description:
      - When two e-mails are the same person's. V(case_insensitive) trims spaces and lower-cases ASCII, V(exact) compares to the letter.
    type: str
    default: case_insensitive
    choices: [case_insensitive, exact]
  email_store:
    description:
      - Which spelling a user's e-mail has. V(as_stored) keeps the survivor's, V(normalized) stores the identity key.
    type: str
    default: as_stored
    choices: [as_stored, normalized]
  join_credentials:
    description:
      - Whose password, sessions and OAuth accounts a joined identity keeps.
      - V(verified) takes those of rows with a verified e-mail only, so that nobody inherits an account by having signed up with its address.
    type: str
    default: verified
    choices: [verified, all]
  duplicate_identities:
    description:
      - What happens when two rows of one table have the same identity key. V(fail) stops, V(merge) joins them in survivor order.
    type: str
    default: fail
    choices: [fail, merge]
  id_collisions:
    description:
      - What happens when an owner and a customer of different identities have one id. V(rekey) gives the customer a derived id.
    type: str
    default: fail
    choices: [fail, rekey]
  unresolvable_bookings:
    description:
      - What happens to a booking with neither a customer nor a usable e-mail. V(quarantine) keeps it whole in the journal.
    type: str
    default: fail
    choices: [fail, quarantine]
  guest_role:
    description:
      - The role of users that are made for guests' bookings.
    type: str
    default: CUSTOMER
    choices: [CUSTOMER, GUEST]
  sample_size:
    description:
      - How many samples a finding or a difference shows at most.
    type: int
    default: 5
  mask_pii:
    description:
      - Whether e-mails in any output are masked, as in C(o***@example.com).
    type: bool
    default: true
"""
