"""What was given to the kernel, written down before it is given: who holds an interface, and what to take back.

Owns the files below /run, one for each interface and network namespace, and their locks: a lock dies with its process,
so a record without one is of a process that was killed. Refuses to know what an interface needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tailscale._private_files import CAREFULLY, give_lock_back, keep_lock, make_folder, try_lock
from tailscale.errors import TunFailed, TunHeld
from tailscale.kernel.netlink import Netlink
from tailscale.kernel.plan import LANDING, RULES_STEP

FIRST_BASE, BASES = 5300, 10  # numbers of tables and rules; upstream's are 5210 to 5270, and table 52
LONGEST_RECORD = 4096
PLACES = ("/run", "XDG_RUNTIME_DIR")


class Claim(NamedTuple):
    """An interface's name is ours, and so are the numbers from `base`."""

    name: str
    base: int
    path: Path
    descriptor: int

    def release(self) -> None:
        """When everything is taken back."""
        self.path.unlink(missing_ok=True)
        give_lock_back(self.descriptor)


class Leftover(NamedTuple):
    """What `cleanup` found: the interface, and the process that holds it; 0 where it is gone and all was taken back."""

    name: str
    holder: int


def records_folder() -> Path:
    """Where a record outlives its process, and not the kernel that it is about."""
    for place in PLACES:
        folder = place if place.startswith("/") else os.environ.get(place, "")
        if folder and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder, "pytailscale")
    raise TunFailed(
        "there is nowhere to write down what the kernel is given: neither /run nor $XDG_RUNTIME_DIR can be written to",
        "set XDG_RUNTIME_DIR to a folder of this user's",
    )


def claim(netlink: Netlink, name: str, folder: Path) -> Claim:
    """Hold a name, and take back what a process that was killed left under it. TunHeld where somebody lives with it."""
    with _alone(folder):
        path = folder / f"{name}@{_namespace()}.json"
        descriptor = _open(path)
        if not try_lock(descriptor):
            holder = _read(descriptor).get("pid", 0)
            os.close(descriptor)
            raise TunHeld(name, holder)
        keep_lock(descriptor)
        try:
            if (base := _read(descriptor).get("base", 0)) in _bases():
                take_back(netlink, base)
            base = _free_base(netlink, folder, path)
            text = json.dumps({"name": name, "base": base, "pid": os.getpid()}).encode()
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text, 0)
        except BaseException:
            if not os.fstat(descriptor).st_size:  # what a killed process left is still to be taken back
                path.unlink(missing_ok=True)
            give_lock_back(descriptor)
            raise
        return Claim(name, base, path, descriptor)


def cleanup(netlink: Netlink, folder: Path) -> list[Leftover]:
    """Take back what processes that are gone have left in this network namespace, recorded or not."""
    found, live = [], set()
    with _alone(folder):
        for path in sorted(folder.glob(f"*@{_namespace()}.json")):
            name, descriptor = path.name.partition("@")[0], _open(path)
            try:
                told = _read(descriptor)
                if not try_lock(descriptor):
                    live.add(told.get("base", 0))
                    found.append(Leftover(name, told.get("pid", 0) or -1))
                    continue
                if told.get("base", 0) in _bases():
                    take_back(netlink, told["base"])
                path.unlink(missing_ok=True)
                found.append(Leftover(name, 0))
            finally:
                os.close(descriptor)
        for base in _bases():
            if base not in live:
                take_back(netlink, base)
    return found


def look(netlink: Netlink, folder: Path) -> list[Leftover]:
    """Who holds what in this network namespace, and what is left of processes that are gone; changes nothing."""
    found, live = [], set()
    for path in sorted(folder.glob(f"*@{_namespace()}.json")):
        descriptor = os.open(path, os.O_RDONLY | CAREFULLY)
        try:
            told = _read(descriptor)
            is_held = not try_lock(descriptor)
        finally:
            os.close(descriptor)
        live.add(told.get("base", 0))
        found.append(Leftover(path.name.partition("@")[0], (told.get("pid", 0) or -1) if is_held else 0))
    bases = {rule.priority // RULES_STEP * RULES_STEP for rule in netlink.rules()}
    return found + [Leftover(f"table {base}", 0) for base in sorted(bases - live)]


def take_back(netlink: Netlink, base: int) -> int:
    """Remove the rules from this number on; how many there were. The routes went with their interface.

    What leads into the tunnel first, and last where the others land: nothing of ours goes round meanwhile.
    """
    ours = [rule for rule in netlink.rules() if base <= rule.priority < base + RULES_STEP]
    for rule in sorted(ours, key=lambda rule: (rule.priority == base + LANDING, -rule.priority)):
        with suppress(FileNotFoundError):
            netlink.delete_rule(rule)
    return len(ours)


def _free_base(netlink: Netlink, folder: Path, own: Path) -> int:
    taken = {rule.priority // RULES_STEP * RULES_STEP for rule in netlink.rules()}
    for path in folder.glob(f"*@{_namespace()}.json"):
        if path != own:
            with suppress(OSError, ValueError):
                taken.add(json.loads(path.read_bytes()[:LONGEST_RECORD]).get("base", 0))
    for base in _bases():
        if base not in taken and not netlink.routes(base):
            return base
    raise TunFailed(f"all {BASES} routing tables from {FIRST_BASE} on are in use", "pytailscale tun --cleanup")


def _bases() -> range:
    return range(FIRST_BASE, FIRST_BASE + BASES * RULES_STEP, RULES_STEP)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time chooses numbers and cleans up; each of them is done at once."""
    import fcntl  # Linux's: so is all of this

    try:
        make_folder(folder)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | CAREFULLY, 0o600)
    except OSError as error:
        raise TunFailed(f"what the kernel is given cannot be written down in {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | CAREFULLY, 0o600)
    except OSError as error:
        raise TunFailed(f"what the kernel is given cannot be written down in {path}: {error.strerror}") from error


def _read(descriptor: int) -> dict[str, Any]:
    """{} for a record that is not whole: its process died before it gave the kernel anything."""
    try:
        told = json.loads(os.pread(descriptor, LONGEST_RECORD, 0))
    except ValueError:
        return {}
    numbers = all(isinstance(told.get(name, 0), int) for name in ("base", "pid")) if isinstance(told, dict) else False
    return told if numbers else {}


def _namespace() -> int:
    """Which network this thread is in: interfaces of one name may be in several."""
    return os.stat("/proc/thread-self/ns/net").st_ino
