#!/usr/bin/python
# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Edit a release of the application before it is built."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release_edit
short_description: Point a release's imports elsewhere and let its routes change places, exactly or not at all
version_added: 0.1.0
description:
  - Makes the edits that switch a release from the legacy to the unified model, given as data - texts that become other texts, and files
    or directories that take other places.
  - Each rewrite must match exactly as many places as expected. All of it is looked at before anything is written; what does not
    match is an error that says what was found.
  - The release that serves is never edited. A release is edited once. Running the module again with the same edits changes nothing; with
    others, or after an interruption, the release has to be made anew.
  - In a copy of a release that was edited, the same edits can be taken back, each as exactly. An edit of which the text alone does not tell
    what was there before is refused by its name.
author:
  - RNLT Labs (@rnltlabs)
extends_documentation_fragment:
  - rnltlabs.unified_user.attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  release_directory:
    description:
      - Directory of the new release.
    type: path
    required: true
  live:
    description:
      - The link that names the release which serves. That release is refused.
    type: path
  rewrites:
    description:
      - Texts that become other texts, in order.
    type: list
    elements: dict
    default: []
    suboptions:
      files:
        description:
          - Files below O(release_directory). C(*) and C(**) are patterns, brackets stand for themselves. Nothing in C(node_modules) is meant.
        type: list
        elements: str
        required: true
      before:
        description:
          - The text, to the letter.
        type: str
        required: true
      after:
        description:
          - What it becomes.
        type: str
        required: true
      places:
        description:
          - How many times it occurs in all of these files together. By default once in each of them.
        type: int
  moves:
    description:
      - Files or directories that take other places, in order, after the rewrites.
    type: list
    elements: dict
    default: []
    suboptions:
      source:
        description:
          - What is moved, below O(release_directory).
        type: str
        required: true
      target:
        description:
          - Where to.
        type: str
        required: true
      displaced:
        description:
          - Where that goes which stands at the target. By default to the place of the source, so that both change places.
        type: str
  inverse:
    description:
      - Whether to take these edits back instead, in a release that they were made in - the moves first, then the rewrites, each in
        reverse order.
      - A rewrite to an empty text cannot be, nor can two in one file that become the same text.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Switch the new release to the unified model
  rnltlabs.unified_user.release_edit:
    release_directory: /srv/massava/releases/20260301
    live: /srv/massava/current
    rewrites:
      - files:
          - app/api/auth/[...nextauth]/route.ts
          - lib/permissions.ts
        before: from "@/auth"
        after: from "@/auth-unified"
    moves:
      - source: app/[locale]/api/bookings-unified
        target: app/[locale]/api/bookings

- name: Make a release of the legacy model again out of a copy of the one that serves
  rnltlabs.unified_user.release_edit:
    release_directory: /srv/massava/releases/20260301-back
    live: /srv/massava/current
    rewrites: "{{ app_switchover_import_rewrites }}"
    moves: "{{ app_switchover_route_moves }}"
    inverse: true
"""

RETURN = r"""
files:
  description: The files that are rewritten, and in how many places. Empty where the release has been edited already.
  returned: success
  type: list
  elements: dict
  sample: [{path: lib/permissions.ts, places: 1}]
moves:
  description: What is renamed, in order.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._release_edit import Edits, edit


def main() -> None:
    """Run the module."""
    text = {"type": "str", "required": True}
    files = {"type": "list", "elements": "str", "required": True}
    rewrite = {"files": files, "before": text, "after": text, "places": {"type": "int"}}
    move = {"source": text, "target": text, "displaced": {"type": "str"}}
    module = AnsibleModule(
        argument_spec={
            "release_directory": {"type": "path", "required": True},
            "live": {"type": "path"},
            "rewrites": {"type": "list", "elements": "dict", "default": [], "options": rewrite},
            "moves": {"type": "list", "elements": "dict", "default": [], "options": move},
            "inverse": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    edits = Edits.from_parameters(parameters["rewrites"], parameters["moves"])
    try:
        if parameters["inverse"]:
            edits = edits.inverse()
        result = edit(parameters["release_directory"], edits, parameters["live"] or "", module.check_mode)
    except UnifiedUserError as error:
        module.fail_json(msg=str(error), **error.details)
    module.exit_json(**{**result, "diff": {"prepared": result["diff"]}})


if __name__ == "__main__":
    main()
