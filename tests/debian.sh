#!/usr/bin/env bash
# Runs the tests of store and ledger on Debian's Redis 7.0 and Postgres 15 (packages redis-server, postgresql-15),
# on services of its own in a temporary folder. Arguments go to pytest; default: tests/store tests/ledger.
set -euo pipefail
cd "$(dirname "$0")/.."
redis=$(command -v redis-server) || { echo "redis-server is missing: apt-get install redis-server" >&2; exit 2; }
bin=/usr/lib/postgresql/15/bin
[ -x "$bin/postgres" ] || { echo "Postgres 15 is missing: apt-get install postgresql-15" >&2; exit 2; }

dir=$(mktemp -d /tmp/rushgate-debian-XXXXXX)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
as=()
if [ "$(id -u)" = 0 ]; then
    chown postgres "$dir"
    as=(setpriv --reuid=postgres --regid=postgres --clear-groups)
fi
"$redis" --port "$port" --bind 127.0.0.1 --dir /tmp --appendonly yes --appendfsync always --appenddirname "${dir##*/}-aof" \
    --maxmemory-policy noeviction --save "" --logfile "" >/dev/null &
store=$!
stop() {
    kill "$store" 2>/dev/null && wait "$store" 2>/dev/null || true
    "${as[@]}" "$bin/pg_ctl" -D "$dir/pg" -m immediate -w stop >/dev/null 2>&1 || true
    rm -rf "$dir" "/tmp/${dir##*/}-aof"
}
trap stop EXIT
"${as[@]}" "$bin/initdb" -D "$dir/pg" -U postgres --auth=trust -E utf8 >/dev/null
"${as[@]}" "$bin/pg_ctl" -D "$dir/pg" -w -l "$dir/log" -o "-c listen_addresses='' -k $dir -c max_connections=200" start >/dev/null

export RUSHGATE_TEST_STORE_URL="redis://127.0.0.1:$port/0"
export RUSHGATE_TEST_LEDGER_DSN="postgresql://postgres@/postgres?host=$dir"
[ $# -gt 0 ] || set -- tests/store tests/ledger
.venv/bin/python -m pytest -q "$@"
