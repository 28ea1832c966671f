"""Builds the peers the interop suite runs against: Headscale, tailscaled, tsnet, derper and friends.

Run it as `python tests/interop/build.py [name ...]`. It needs only the standard library and a Go
toolchain; with no `go` on the path it says so once and succeeds, because everything else in the
project works without Go. Binaries land in a cache outside the tree, one directory per set of pins
(go.mod, go.sum, our own Go sources), so an unchanged tree builds nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = HERE / "peers"


@dataclass(frozen=True)
class Peer:
    """One binary: its file name, the module that pins it, and the package to build."""

    name: str
    module: str
    package: str
    version: str = ""

    @property
    def flags(self) -> str:
        stamp = ""
        if self.version:
            stamp = "".join(f" -X tailscale.com/version.{k}Stamp={self.version}" for k in ("long", "short"))
        return "-s -w" + stamp


def _tailscale(name: str, package: str = "") -> Peer:
    return Peer(name, "tailscale", package or f"tailscale.com/cmd/{name}", "1.102.3")


# In the order they are built: what most tests need comes first.
PEERS: tuple[Peer, ...] = (
    Peer("headscale-0.29.2", "headscale-0.29.2", "github.com/juanfont/headscale/cmd/headscale"),
    _tailscale("derper"),
    _tailscale("tsnetpeer", "./tsnetpeer"),
    _tailscale("oracle", "./oracle"),
    _tailscale("scripted", "./scripted"),
    _tailscale("tailscaled"),
    _tailscale("tailscale"),
    Peer("localclient", "localclient", "./", "1.102.3"),
    Peer("lockvectors", "lock", "./vectors", "1.102.3"),
    Peer("lockcontrol", "lock", "./control", "1.102.3"),
    Peer("pebble", "pebble", "github.com/letsencrypt/pebble/v2/cmd/pebble"),
    Peer("pebble-challtestsrv", "pebble", "github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv"),
    _tailscale("stund"),
    _tailscale("tsp"),
    _tailscale("testcontrol"),
    Peer("headscale-0.28.0", "headscale-0.28.0", "github.com/juanfont/headscale/cmd/headscale"),
    Peer("tailscaled-old", "tailscale-old", "tailscale.com/cmd/tailscaled", "1.86.5"),
    Peer("tailscale-old", "tailscale-old", "tailscale.com/cmd/tailscale", "1.86.5"),
)
BY_NAME = {p.name: p for p in PEERS}


def cache_root() -> Path:
    """Where all builds live: $PYTAILSCALE_PEERS, else a directory under the user's cache."""
    named = os.environ.get("PYTAILSCALE_PEERS")
    return Path(named) if named else Path.home() / ".cache" / "pytailscale" / "peers"


def pins(peer: Peer) -> str:
    """A hash of everything that decides this binary: pins, flags, and for our own mains their sources."""
    module = MODULES / peer.module
    h = hashlib.sha256(f"{peer.package}\0{peer.flags}\0".encode())
    sources = [module / "go.mod", module / "go.sum"]
    if peer.package.startswith("./"):
        sources += sorted(module.rglob("*.go"))
    for source in sources:
        h.update(str(source.relative_to(module)).encode() + b"\0" + source.read_bytes())
    return h.hexdigest()[:16]


def binary(name: str) -> Path:
    """Where the binary of this name is, or would be, for the pins of this tree."""
    peer = BY_NAME[name]
    return cache_root() / pins(peer) / name


def is_built(name: str) -> bool:
    return (MODULES / BY_NAME[name].module / "go.sum").exists() and binary(name).exists()


def missing(names: tuple[str, ...] = tuple(BY_NAME)) -> list[str]:
    return [n for n in names if not is_built(n)]


def build(peer: Peer, jobs: int) -> bool:
    """Builds one binary beside its final place, then renames it: a half-built file is never seen."""
    target = binary(peer.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{peer.name}.{os.getpid()}")
    command = ["go", "build", "-mod=readonly", "-trimpath", "-p", str(jobs), "-ldflags", peer.flags]
    command += ["-o", str(partial), peer.package]
    started = time.monotonic()
    print(f"building {peer.name} ...", flush=True)
    env = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOWORK": "off"}
    done = subprocess.run(command, cwd=MODULES / peer.module, env=env, preexec_fn=_be_nice, check=False)
    took = time.monotonic() - started
    if done.returncode != 0:
        partial.unlink(missing_ok=True)
        print(f"FAILED to build {peer.name} after {took:.0f} s", flush=True)
        return False
    partial.rename(target)
    print(f"built {peer.name} in {took:.0f} s: {target}", flush=True)
    return True


def _be_nice() -> None:
    os.nice(5)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"what to build (default: all): {' '.join(BY_NAME)}")
    parser.add_argument("--list", action="store_true", help="say what is built and what is missing, build nothing")
    parser.add_argument("--jobs", type=int, default=2, help="parallel compilations (default 2)")
    options = parser.parse_args(argv)
    unknown = set(options.names) - set(BY_NAME)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    chosen = [p for p in PEERS if not options.names or p.name in options.names]
    chosen = [p for p in chosen if (MODULES / p.module / "go.sum").exists()]
    if options.list:
        for peer in chosen:
            print(f"{'built  ' if is_built(peer.name) else 'missing'} {binary(peer.name)}")
        return 0
    todo = [p for p in chosen if not is_built(p.name)]
    if not todo:
        print(f"interop peers: all {len(chosen)} built in {cache_root()}")
        return 0
    if shutil.which("go") is None:
        names = ", ".join(p.name for p in todo)
        print(
            f"interop peers: NOT BUILT, there is no `go` here, so the interop suite will be skipped (missing: {names})"
        )
        return 0
    failed = [p.name for p in todo if not build(p, options.jobs)]
    if failed:
        print(f"interop peers: {len(failed)} of {len(todo)} failed: {', '.join(failed)}")
        return 1
    print(f"interop peers: {len(todo)} built, {len(chosen) - len(todo)} were there already")
    return 0


if __name__ == "__main__":
    sys.exit(main())
