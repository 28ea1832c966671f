#!/usr/bin/env bash
# What tests/interop/test_real_clients.py talks to: PostgreSQL and Redis from Debian, their Python clients from the
# `interop` dependency group. Idempotent; without root or apt it says so in one line and leaves the tests to skip.
set -u
cd "$(dirname "$0")/../.."

if [ -x .venv/bin/python ] && ! .venv/bin/python -c 'import aiohttp, asyncpg, httpx2, psycopg, redis, requests, uvicorn' 2>/dev/null; then
  .venv/bin/python -m pip install -q --disable-pip-version-check --group interop ||
    echo "REAL CLIENTS NOT INSTALLED: pip could not install the interop group; tests/interop/test_real_clients.py will skip"
fi

wanted=()
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || wanted+=(postgresql)
command -v redis-server >/dev/null || wanted+=(redis-server)
[ ${#wanted[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "REAL SERVERS NOT INSTALLED: ${wanted[*]} need root and apt-get; tests/interop/test_real_clients.py will skip"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# The packages would start servers of their own on fixed ports: the tests start theirs.
policy=/usr/sbin/policy-rc.d
[ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && trap 'rm -f $policy' EXIT; }
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${wanted[@]}"; } >"$log" 2>&1; then
  tail -n 5 "$log"
  echo "REAL SERVERS NOT INSTALLED: apt-get failed (log: $log); tests/interop/test_real_clients.py will skip"
  exit 0
fi
rm -f "$log"
