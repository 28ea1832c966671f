"""What a device keeps between runs, and the stores it can be kept in: entries of bytes by name.

Owns the State record, which is the entry "device", its versioned text, and the files that hold entries: private,
replaced atomically, locked against a second process. Refuses to guess: a file that cannot be read, trusted or
understood is an error, never a new identity. The disco key is not here on purpose, it is made anew at every start.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from tailscale._private_files import (
    CAREFULLY,
    give_lock_back,
    is_on_read_only_mount,
    keep_lock,
    make_folder,
    open_mounted,
    read_pid,
    replace_file,
    try_lock,
)
from tailscale.errors import StateCorrupt, StateLocked
from ts_base.errors import BadPacket
from ts_base.keys import MachinePrivate, NodePrivate

STATE_VERSION = 1
DEVICE = "device"  # the entry that holds the State
FILE_NAME = "state.json"
MAX_STATE_LENGTH = 64 << 10
MAX_ENTRY_LENGTH = 16 << 20
ENTRY_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


@dataclass(frozen=True, slots=True)
class State:
    """Who this device is. Keys show redacted in the repr; `encode_state` is the one way to their text."""

    machine_key: MachinePrivate
    node_key: NodePrivate
    old_node_key: NodePrivate | None = None  # the one before node_key
    next_node_key: NodePrivate | None = None  # sent to control, not known to be accepted: a crash cannot lose it
    stable_id: str = ""
    control_url: str = ""
    registered: bool = False  # control has accepted node_key: no auth key is needed any more
    home_region: int = 0  # where peers were last told to look for us: dialled first on a warm start
    udp_port: int = 0

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes], control_url: str = "") -> State:
        """A device that nobody has heard of yet."""
        return cls(MachinePrivate.generate(entropy(32)), NodePrivate.generate(entropy(32)), control_url=control_url)


class Store(Protocol):
    """Where a State lives. Any object with these three methods will do; `encode_state` and `decode_state_untrusted`
    turn a State into text and back. One that can keep more than that is a `NamedStore`.
    """

    def lock(self) -> AbstractContextManager[object]:
        """Hold the store while a Device lives. Raises StateLocked."""

    def load(self) -> State | None:
        """The State, or None when there has never been one. Raises StateCorrupt."""

    def save(self, state: State) -> None:
        """Replace the State, all or nothing. Raises StateCorrupt."""


class NamedStore(Protocol):
    """Bytes by name: the identity as the entry "device", and beside it whatever makes the next start better. Names are
    lower-case letters, digits, dots and dashes. Losing any other entry costs time at most.
    """

    def lock(self) -> AbstractContextManager[object]:
        """Hold the store while a Device lives. Raises StateLocked."""

    def read(self, name: str) -> bytes | None:
        """The entry, or None when there is none. Raises StateCorrupt."""

    def write(self, name: str, data: bytes) -> None:
        """Replace the entry, all or nothing. Raises StateCorrupt."""

    def delete(self, name: str) -> None:
        """Forget the entry, if there is one. Raises StateCorrupt."""


def open_store(where: str | os.PathLike[str] | Store | NamedStore | None) -> NamedStore:
    """What `Device(state=...)` accepts: a path, a store of either kind, or None for one that forgets."""
    if where is None:
        return MemoryStore()
    if isinstance(where, str | os.PathLike):
        return FileStore(where)
    if all(hasattr(where, verb) for verb in ("read", "write", "delete")):
        return cast(NamedStore, where)
    return _IdentityStore(cast(Store, where))


def read_state(store: NamedStore) -> State | None:
    """The identity in a store, or None when there has never been one. Raises StateCorrupt."""
    if isinstance(store, FileStore):
        return store.load()  # whose sentences name the file
    text = store.read(DEVICE)
    try:
        return decode_state_untrusted(text) if text is not None else None
    except BadPacket as problem:
        raise StateCorrupt(f"the state cannot be used: {problem}") from None


class MemoryStore:
    """Lives and dies with the object; the object may be handed to the next Device.

    ```python
    store = tailscale.MemoryStore()
    for _ in range(2):  # the second is the same node, and needs no key
        async with tailscale.Device(state=store) as device:
            print(device.ipv4)
    ```
    """

    def __init__(self, state: State | None = None) -> None:
        self.state = state
        self._entries: dict[str, bytes] = {}
        self._held = False

    def __repr__(self) -> str:
        return f"MemoryStore({self.state!r})"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One Device at a time."""
        if self._held:
            raise StateLocked("memory", os.getpid())
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def load(self) -> State | None:
        """What was saved last."""
        return self.state

    def save(self, state: State) -> None:
        """Remember it."""
        self.state = state

    def read(self, name: str) -> bytes | None:
        """The entry, if there is one."""
        if name == DEVICE:
            return encode_state(self.state) if self.state is not None else None
        return self._entries.get(_checked_name(name))

    def write(self, name: str, data: bytes) -> None:
        """Remember the entry."""
        if name == DEVICE:
            self.state = decode_state_untrusted(data)
        else:
            self._entries[_checked_name(name)] = data

    def delete(self, name: str) -> None:
        """Forget the entry."""
        if name == DEVICE:
            self.state = None
        self._entries.pop(name, None)


class _IdentityStore:
    """A store that keeps a State and nothing else, as one with names: the other entries live as long as this object."""

    forgets_entries = True

    def __init__(self, store: Store) -> None:
        self._store = store
        self._others = MemoryStore()

    def __repr__(self) -> str:
        return repr(self._store)

    def lock(self) -> AbstractContextManager[object]:
        return self._store.lock()

    def read(self, name: str) -> bytes | None:
        if name != DEVICE:
            return self._others.read(name)
        state = self._store.load()
        return encode_state(state) if state is not None else None

    def write(self, name: str, data: bytes) -> None:
        if name == DEVICE:
            self._store.save(decode_state_untrusted(data))
        else:
            self._others.write(name, data)

    def delete(self, name: str) -> None:
        self._others.delete(name)


def _longest(name: str) -> int:
    """What is not read is not written either."""
    return MAX_STATE_LENGTH if name == DEVICE else MAX_ENTRY_LENGTH


def _checked_name(name: str) -> str:
    """A name that is no path, and none of the files that stand beside the entries."""
    if not ENTRY_NAME.fullmatch(name) or name.rpartition(".")[2] in {"lock", "new"}:
        raise ValueError(f"no name for an entry: {name!r}")
    return name


def encode_state(state: State) -> bytes:
    """The secret text of a State."""
    fields = {
        "version": STATE_VERSION,
        "machine_key": state.machine_key.export(),
        "node_key": state.node_key.export(),
        "old_node_key": state.old_node_key.export() if state.old_node_key is not None else None,
        "next_node_key": state.next_node_key.export() if state.next_node_key is not None else None,
        "stable_id": state.stable_id,
        "control_url": state.control_url,
        "registered": state.registered,
        "home_region": state.home_region,
        "udp_port": state.udp_port,
    }
    return json.dumps(fields, indent=1).encode() + b"\n"


def decode_state_untrusted(text: bytes) -> State:
    """Raises BadPacket with a reason that quotes nothing of the file."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise BadPacket("it is not the JSON that was written: cut short or overwritten") from None
    if not isinstance(fields, dict) or type(fields.get("version")) is not int:
        raise BadPacket("it is not a state file")
    if fields["version"] != STATE_VERSION:
        raise BadPacket(f"it has version {fields['version']} and this program knows version {STATE_VERSION}")
    old = _typed(fields, "old_node_key", str, None)
    tried = _typed(fields, "next_node_key", str, None)
    return State(
        machine_key=MachinePrivate.parse(_typed(fields, "machine_key", str)),
        node_key=NodePrivate.parse(_typed(fields, "node_key", str)),
        old_node_key=NodePrivate.parse(old) if old is not None else None,
        next_node_key=NodePrivate.parse(tried) if tried is not None else None,
        stable_id=_typed(fields, "stable_id", str, ""),
        control_url=_typed(fields, "control_url", str, ""),
        registered=_typed(fields, "registered", bool, False),
        home_region=_typed(fields, "home_region", int, 0),
        udp_port=_typed(fields, "udp_port", int, 0),
    )


_REQUIRED = object()
OPENS = b"{"  # every entry is a JSON object


def _typed(fields: dict[str, Any], name: str, kind: type, default: object = _REQUIRED) -> Any:
    value = fields.get(name)
    if value is None and default is not _REQUIRED:
        return default
    if type(value) is not kind:
        raise BadPacket(f"its field {name} is missing or of the wrong type")
    return value


class FileStore:
    """One file, 0600, in a directory of its own that is made 0700 when it is not there.

    `path` may name the file or a directory; what does not exist yet is a file if it has a suffix.

    ```python
    async with tailscale.Device(state=tailscale.FileStore("worker-state")) as device:
        print(device.ipv4)
    ```
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        chosen = Path(path).expanduser()
        is_file = chosen.is_file() or (not chosen.exists() and bool(chosen.suffix))
        self.path = chosen if is_file else chosen / FILE_NAME

    def __repr__(self) -> str:
        return f"FileStore({os.fspath(self.path)!r})"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time; the lock dies with the process."""
        with self._told_as_ours("lock"):
            make_folder(self.path.parent)
            # A file of its own: the state file is replaced at every save, and a lock would stay with the old one.
            descriptor = self._open_lock()
        keep_lock(descriptor)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise self._corrupt("its lock file is not a file of its own: somebody has linked it to another")
            if not try_lock(descriptor):
                raise StateLocked(os.fspath(self.path), read_pid(descriptor))
            if not is_on_read_only_mount(descriptor):
                with contextlib.suppress(OSError):  # a full disk: the lock is what counts
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, b"%d\n" % os.getpid())
                self._remove_drafts()
            yield
        finally:
            give_lock_back(descriptor)

    def _remove_drafts(self) -> None:
        """What a process that was killed had not put into its place yet: it may hold keys, and nobody wants it."""
        own = self.path.name
        with contextlib.suppress(OSError):
            for name in os.listdir(self.path.parent):
                entry = name.removeprefix(f"{own}.").removesuffix(".new")
                if name == f"{own}.new" or (name == f"{own}.{entry}.new" and ENTRY_NAME.fullmatch(entry)):
                    self.path.with_name(name).unlink()

    def _open_lock(self) -> int:
        try:
            return os.open(self._beside("lock"), os.O_RDWR | os.O_CREAT | CAREFULLY, 0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return open_mounted(self.path)

    def load(self) -> State | None:
        """What the file says, if it is there, private and whole."""
        text = self.read(DEVICE)
        try:
            return decode_state_untrusted(text) if text is not None else None
        except BadPacket as problem:
            raise self._corrupt(str(problem)) from None

    def save(self, state: State) -> None:
        """Write a new file beside the old one, then put it in its place."""
        self.write(DEVICE, encode_state(state))

    def read(self, name: str) -> bytes | None:
        """What the entry's file holds, if it is there and private."""
        limit = _longest(name)
        with self._told_as_ours("read"):
            try:
                descriptor = open_mounted(self._path_of(name))
            except FileNotFoundError:
                return None
            with os.fdopen(descriptor, "rb") as file:
                self._check_private(file.fileno())
                data = file.read(limit + 1)
        if len(data) > limit:
            raise self._corrupt("it is far larger than any state file")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a new file beside the old one, then put it in its place."""
        if len(data) > _longest(name):
            raise ValueError(f"{len(data)} bytes are too many for the entry {name!r}: {_longest(name)} at most")
        with self._told_as_ours("write"):
            replace_file(self._path_of(name), data)

    def delete(self, name: str) -> None:
        """Remove the entry's file."""
        with self._told_as_ours("write"):
            self._path_of(name).unlink(missing_ok=True)

    def _path_of(self, name: str) -> Path:
        return self.path if name == DEVICE else self._beside(_checked_name(name))

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{ending}")

    def _check_private(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise self._corrupt("it is not a regular file")
        if sys.platform == "win32":
            return  # access lists decide there, and the mode bits say nothing
        if is_on_read_only_mount(descriptor):
            return  # as a Kubernetes secret is: whoever mounted it chose owner and mode, and we cannot mend them
        if status.st_uid != os.geteuid():
            raise self._corrupt(f"it belongs to user {status.st_uid}, not to user {os.geteuid()} who runs this")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            if os.pread(descriptor, 1, 0) != OPENS:
                raise self._corrupt("it is no state of a device: state= names a directory, or a file of its own")
            raise self._corrupt(f"others may read it (mode {mode:04o}): its keys may be known. If not, chmod 600 it")

    def _corrupt(self, reason: str) -> StateCorrupt:
        return StateCorrupt(
            f"the state file {self.path} cannot be used: {reason}. It is left as it is: repair it, restore a copy, or "
            "move it away to become a new device"
        )

    @contextlib.contextmanager
    def _told_as_ours(self, deed: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateCorrupt(f"cannot {deed} the state file {self.path}: {error.strerror or error}") from error
