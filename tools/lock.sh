#!/usr/bin/env bash
# Compiles requirements/*.in into requirements/*.txt: exact versions with hashes, for every supported Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv_environment=.cache/uv
[ -x "$uv_environment/bin/uv" ] || { python3 -m venv "$uv_environment" && "$uv_environment/bin/pip" install --quiet uv; }

for input in requirements/*.in; do
    options=()
    # The wheel in collections.in is unpacked, never installed, so what it depends on does not matter.
    [ "$input" = requirements/collections.in ] && options=(--no-deps)
    "$uv_environment/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" "${options[@]}" \
        --output-file "${input%.in}.txt" "$input"
done
