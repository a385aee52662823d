#!/usr/bin/env bash
# Makes a checkout ready to use: .venv from the pinned lock, then the collections. Safe to run again; does only what is missing.
# PYTHON=/path/to/python chooses the interpreter (3.11 to 3.13); else the first one that fits is taken.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: Failed to %s\n' "$*" >&2; exit 1; }

# Prints how to become root for apt-get ("" as root, "sudo -n" where it asks no password); fails when there is no way.
become() {
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then echo ""; elif sudo -n true 2>/dev/null; then echo "sudo -n"; else return 1; fi
}

apt_install() {
    local prefix
    prefix=$(become) || return 1
    say "installing Debian packages: $*"
    $prefix env DEBIAN_FRONTEND=noninteractive apt-get -qq update >/dev/null || true
    $prefix env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends --yes "$@" >/dev/null
}

fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11 /usr/bin/python3}; do
        if command -v "$candidate" >/dev/null && fits "$candidate"; then command -v "$candidate"; return; fi
    done
    return 1
}

make_environment() {
    local stamp python
    stamp=".venv/.locked-$(sha256sum requirements/dev.txt | cut -c1-16)"
    if [ -e "$stamp" ] && fits .venv/bin/python; then return; fi
    if fits .venv/bin/python; then
        say "bringing .venv up to the lock"
    else
        if ! python=$(find_python); then
            apt_install python3 python3-venv || apt_install python3.11 python3.11-venv || true
            python=$(find_python) || fail "find a Python from 3.11 to 3.13 that has venv: none of python3.13, python3.12, python3.11, python3 fits. Install python3.11 and python3.11-venv, or run make setup PYTHON=/path/to/python."
        fi
        say "making .venv with $("$python" --version)"
        rm -rf .venv
        "$python" -m venv .venv
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt 2>&1 \
        | { grep -v '^WARNING: Location' || true; }
    touch "$stamp"
}

# A third major for the tests. Debian's own cluster is not created, and no server is started.
offer_debian_postgresql() {
    [ -e .cache/postgresql-15-asked ] && return
    if [ ! -x /usr/lib/postgresql/15/bin/postgres ] && grep -qs '^VERSION_CODENAME=bookworm' /etc/os-release && become >/dev/null; then
        if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
            $(become) mkdir -p /etc/postgresql-common
            echo 'create_main_cluster = false' | $(become) tee /etc/postgresql-common/createcluster.conf >/dev/null
        fi
        apt_install postgresql-15 || say "PostgreSQL 15 could not be installed: its tests will be skipped"
    fi
    touch .cache/postgresql-15-asked
}

# The tests run the real Prisma CLI and build the reference application, which need Node.js 18.18 or later.
offer_node() {
    local wanted='const [major, minor] = process.versions.node.split(".").map(Number); process.exit(major > 18 || (major === 18 && minor >= 18) ? 0 : 1)'
    if command -v npm >/dev/null && node -e "$wanted" 2>/dev/null; then return; fi
    [ -e .cache/node-asked ] && return
    if become >/dev/null; then apt_install nodejs npm || true; fi
    if ! command -v npm >/dev/null || ! node -e "$wanted" 2>/dev/null; then
        say "Node.js 18.18 or later and npm are not there and could not be installed: the tests with the real Prisma CLI and the reference application will fail"
    fi
    touch .cache/node-asked
}

# What the tests run for real: encryption, another host over SSH, pgBackRest, a pooler, a browser, a clock that is wrong. No server may
# start by itself.
offer_test_programs() {
    local wanted="age chromium chromium-driver faketime openssh-client openssh-server pgbackrest pgbouncer"
    [ "$(cat .cache/test-programs-asked 2>/dev/null)" = "$wanted" ] && return
    if ! { command -v age && command -v chromium && command -v chromedriver && command -v faketime && command -v ssh && command -v pgbackrest \
        && [ -x /usr/sbin/pgbouncer ] && [ -x /usr/sbin/sshd ]; } >/dev/null && become >/dev/null; then
        local policy=/usr/sbin/policy-rc.d made=""
        if [ ! -e "$policy" ]; then
            printf '#!/bin/sh\nexit 101\n' | $(become) tee "$policy" >/dev/null && $(become) chmod 0755 "$policy" && made=yes
        fi
        # shellcheck disable=SC2086 # a list of packages
        apt_install $wanted || say "$wanted could not be installed: the tests with them will fail"
        [ -z "$made" ] || $(become) rm -f "$policy"
    fi
    echo "$wanted" > .cache/test-programs-asked
}

# Two terminals may start at once; the second waits and finds all done.
mkdir -p .cache
exec 9>.cache/setup.lock
flock 9

make_environment
.venv/bin/python tools/install_collections.py
offer_debian_postgresql
offer_node
offer_test_programs
