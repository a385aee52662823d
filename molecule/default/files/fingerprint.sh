#!/bin/sh
# One hash of all that a database holds, its schemas included, and of the names of all databases and roles.
# Run as the server's superuser: fingerprint.sh DATABASE
set -eu
{
    # The restrict key of a plain dump is random.
    pg_dump --dbname="$1" | grep -v -E '^\\(un)?restrict '
    psql --dbname="$1" --no-psqlrc --tuples-only --no-align --command='SELECT datname FROM pg_database ORDER BY 1' \
        --command='SELECT rolname FROM pg_roles ORDER BY 1'
} | sha256sum | cut -d' ' -f1
