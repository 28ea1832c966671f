#!/usr/bin/env bash
# What the interop suite needs of the machine, from Debian: PostgreSQL, Redis, the network tools of the NAT lab, clients for
# the proxy, and shells.
# Idempotent; without root or apt it says so in one line and tests skip.
set -u
cd "$(dirname "$0")/../.."

wanted=()
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || wanted+=(postgresql)
command -v redis-server >/dev/null || wanted+=(redis-server)
# What the NAT lab and the paths tests build their networks with.
command -v nft >/dev/null || wanted+=(nftables)
command -v conntrack >/dev/null || wanted+=(conntrack)
command -v ip >/dev/null || wanted+=(iproute2)
# What the kernel speaks with through a TUN device.
command -v ping >/dev/null || wanted+=(iputils-ping)
command -v dig >/dev/null || wanted+=(bind9-dnsutils)
command -v iperf3 >/dev/null || wanted+=(iperf3)
# Clients of the proxy.
command -v curl >/dev/null || wanted+=(curl)
command -v git >/dev/null || wanted+=(git)
command -v ssh >/dev/null || wanted+=(openssh-client)
[ -x /usr/sbin/sshd ] || wanted+=(openssh-server)
nc -h 2>&1 | grep -q proxy_protocol || wanted+=(netcat-openbsd)
command -v chromium >/dev/null || wanted+=(chromium)
# What files of a mesh are compared with.
command -v rsync >/dev/null || wanted+=(rsync)
# Shells that complete.
command -v zsh >/dev/null || wanted+=(zsh)
command -v fish >/dev/null || wanted+=(fish)
[ ${#wanted[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "REAL SERVERS NOT INSTALLED: ${wanted[*]} need root and apt-get; the tests that use them will skip"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# The packages would start servers of their own on fixed ports: the tests start theirs.
policy=/usr/sbin/policy-rc.d
[ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && trap 'rm -f $policy' EXIT; }
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${wanted[@]}"; } >"$log" 2>&1; then
  tail -n 5 "$log"
  echo "REAL SERVERS NOT INSTALLED: apt-get failed (log: $log); the tests that use them will skip"
  exit 0
fi
rm -f "$log"
