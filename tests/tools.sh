#!/usr/bin/env bash
# Debian's Chromium, promtool, docker-compose and systemd-analyze for the tests that need them; installs them where it may (root and apt-get).
# Prints the markers of the tests that can run, for pytest's -m; what is left out is told on stderr.
set -euo pipefail
missing() {
    local found=()
    command -v chromium >/dev/null || found+=(chromium)
    command -v promtool >/dev/null || found+=(prometheus)
    command -v docker-compose >/dev/null || found+=(docker-compose)
    command -v systemd-analyze >/dev/null || found+=(systemd)
    echo "${found[@]}"
}
want=$(missing)
if [ -n "$want" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing $want (Debian's packages, for the tests)" >&2
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get -q update || true
        # shellcheck disable=SC2086 # a list of names
        apt-get -q install -y --no-install-recommends $want
    } >/dev/null 2>&1 || true
fi
without=()
command -v chromium >/dev/null || without+=("not browser")
command -v promtool >/dev/null && command -v docker-compose >/dev/null && command -v systemd-analyze >/dev/null \
    || without+=("not deploy")
if [ ${#without[@]} -gt 0 ]; then
    echo "LEFT OUT (apt-get install $(missing)): tests marked ${without[*]/not /}" >&2
fi
joined=$(printf ' and %s' "${without[@]}")
[ ${#without[@]} -eq 0 ] || echo "${joined# and }"
