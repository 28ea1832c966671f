"""Commands in network namespaces, a thread's stay in one, and why there may be none here."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator

from trio._core._thread_cache import THREAD_CACHE

from tests.interop.natlab.kinds import source_nat

CLONE_NEWNET = 0x40000000


class LabError(Exception):
    """The kernel did not do what the lab needs."""


def why_not() -> str:
    """Why there can be no lab here; empty when there can."""
    if os.geteuid() != 0:
        return "the NAT lab needs root"
    for tool in ("ip", "nft"):
        if shutil.which(tool) is None:
            return f"the NAT lab needs `{tool}`"
    probe = f"pt{os.getpid()}p"
    done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if done.returncode != 0:
        return "the NAT lab needs network namespaces"
    ruled = subprocess.run(
        ["ip", "netns", "exec", probe, "nft", "-f", "-"],
        input=source_nat("masquerade fully-random"),
        text=True,
        capture_output=True,
        check=False,
    )
    subprocess.run(["ip", "netns", "del", probe], check=False)
    return (
        "" if ruled.returncode == 0 else f"the NAT lab needs nftables masquerade in the kernel ({ruled.stderr.strip()})"
    )


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}\n{stdin}")
    return done.stdout


def nft(namespace: str, rules: str) -> None:
    run("ip", "netns", "exec", namespace, "nft", "-f", "-", stdin=rules)


def _forget_workers() -> None:
    """Trio keeps worker threads for ten seconds, and they stay in the namespace of the thread that began them.

    A program started by one of them would see the network of an earlier test.
    """
    getattr(THREAD_CACHE, "_idle_workers").clear()  # noqa: B009 - trio has no public way


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread, and what it starts, live in the namespace while the body runs."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(there, CLONE_NEWNET) != 0:
            raise LabError(os.strerror(ctypes.get_errno()))
        _forget_workers()
        try:
            yield
        finally:
            libc.setns(before, CLONE_NEWNET)
            _forget_workers()
    finally:
        os.close(before)
        os.close(there)
