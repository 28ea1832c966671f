from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailscale.errors import StateCorrupt, StateLocked
from tailscale.state_file import (
    DEVICE,
    MAX_ENTRY_LENGTH,
    FileStore,
    MemoryStore,
    State,
    Store,
    decode_state_untrusted,
    encode_state,
    open_store,
    read_state,
)
from ts_base.errors import BadPacket
from ts_base.keys import NodePrivate

STATE = dataclasses.replace(
    State.generate(lambda n: bytes(range(n)), "https://control.example"),
    old_node_key=NodePrivate.generate(bytes(range(1, 33))),
    stable_id="nStable",
    registered=True,
    home_region=900,
    udp_port=41641,
)

# As written by the first release of the format.
OLD_FILE = b"""{
 "version": 1,
 "machine_key": "privkey:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e5f",
 "node_key": "privkey:00030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2061",
 "old_node_key": "privkey:0002030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f60",
 "next_node_key": null,
 "stable_id": "nStable",
 "control_url": "https://control.example",
 "registered": true,
 "home_region": 900,
 "udp_port": 41641
}
"""

posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and owners are POSIX")


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "device")


def test_state_survives_its_text() -> None:
    assert decode_state_untrusted(encode_state(STATE)) == STATE


def test_saved_state_is_loaded_by_the_next_process(store: FileStore) -> None:
    assert store.load() is None
    store.save(STATE)
    assert FileStore(store.path.parent).load() == STATE
    assert os.listdir(store.path.parent) == ["state.json"]


@posix
def test_file_is_0600_in_a_directory_0700(store: FileStore) -> None:
    previous = os.umask(0)
    try:
        store.save(STATE)
    finally:
        os.umask(previous)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_path_may_name_a_file_or_a_directory(tmp_path: Path) -> None:
    assert FileStore(tmp_path).path == tmp_path / "state.json"
    assert FileStore(tmp_path / "new").path == tmp_path / "new" / "state.json"
    assert FileStore(tmp_path / "my.state").path == tmp_path / "my.state"
    (tmp_path / "plain").write_text("")
    assert FileStore(str(tmp_path / "plain")).path == tmp_path / "plain"


def test_open_store_takes_paths_stores_and_nothing(tmp_path: Path) -> None:
    memory = MemoryStore()
    assert open_store(memory) is memory
    assert isinstance(open_store(None), MemoryStore)
    opened = open_store(tmp_path)
    assert isinstance(opened, FileStore)


@pytest.mark.parametrize(
    "make", [lambda folder: FileStore(folder), lambda folder: MemoryStore()], ids=["file", "memory"]
)
def test_entries_are_kept_by_name_and_the_device_is_one_of_them(
    tmp_path: Path, make: Callable[[Path], FileStore | MemoryStore]
) -> None:
    store = make(tmp_path)
    assert store.read("relays") is None
    store.save(STATE)
    store.write("relays", b"{}")
    store.write("cert-a.example.com", bytes(range(256)))
    assert store.read("relays") == b"{}"
    assert store.read("cert-a.example.com") == bytes(range(256))
    assert store.read(DEVICE) == encode_state(STATE)
    store.write(DEVICE, encode_state(NEWER))
    assert store.load() == read_state(store) == NEWER
    store.delete("relays")
    store.delete("relays")
    assert store.read("relays") is None
    for name in ("", "a/b", "..", "/etc/passwd", "lock", "new", "x.lock", "A", "a" * 65):
        with pytest.raises(ValueError, match="no name"):
            store.write(name, b"")


def test_a_file_written_before_entries_had_names_still_opens(store: FileStore) -> None:
    write(store, OLD_FILE)
    state = store.load()
    assert state is not None
    assert (state.stable_id, state.registered, state.home_region, state.udp_port) == ("nStable", True, 900, 41641)
    assert store.read(DEVICE) == OLD_FILE
    store.save(state)
    assert store.path.read_bytes() == OLD_FILE


@posix
def test_every_entry_is_a_private_file_beside_the_state(store: FileStore) -> None:
    previous = os.umask(0)
    try:
        store.write("relays", b"{}")
    finally:
        os.umask(previous)
    assert os.listdir(store.path.parent) == ["state.json.relays"]
    path = store.path.with_name("state.json.relays")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(StateCorrupt):
        store.read("relays")


class VaultStore:
    """What docs/configuration.md tells people to write: an identity and nothing else."""

    def __init__(self) -> None:
        self.text = b""

    def lock(self) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def load(self) -> State | None:
        return decode_state_untrusted(self.text) if self.text else None

    def save(self, state: State) -> None:
        self.text = encode_state(state)


def test_a_store_that_keeps_an_identity_and_nothing_else_goes_on_working() -> None:
    vault = VaultStore()
    opened = open_store(vault)
    assert read_state(opened) is None
    with opened.lock():
        opened.write(DEVICE, encode_state(STATE))
        opened.write("relays", b"{}")
    assert decode_state_untrusted(vault.text) == STATE
    assert read_state(opened) == STATE
    assert opened.read("relays") == b"{}"
    opened.delete("relays")
    assert opened.read("relays") is None
    assert open_store(vault).read("relays") is None


@posix
def test_every_folder_on_the_way_is_made_private(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        FileStore(tmp_path / "a" / "b" / "c").save(STATE)
    finally:
        os.umask(previous)
    for folder in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@posix
def test_a_lock_file_linked_to_another_file_costs_that_file_nothing(store: FileStore, tmp_path: Path) -> None:
    store.path.parent.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.link(victim, store.path.with_name("state.json.lock"))
    with pytest.raises(StateCorrupt, match="lock"), store.lock():
        pass
    assert victim.read_text() == "precious"


@posix
@pytest.mark.parametrize("name", ["state.json", "state.json.lock", "state.json.relays"])
def test_a_fifo_in_place_of_a_file_holds_nobody_up(store: FileStore, name: str) -> None:
    store.path.parent.mkdir()
    os.mkfifo(store.path.with_name(name), 0o600)
    with pytest.raises(StateCorrupt), store.lock():
        store.load()
        store.read("relays")


def test_second_holder_is_told_who_holds_it(store: FileStore) -> None:
    with store.lock(), pytest.raises(StateLocked) as refusal, FileStore(store.path).lock():
        pass
    assert refusal.value.pid == os.getpid()
    assert str(os.getpid()) in str(refusal.value)
    with store.lock():
        pass


def test_lock_holds_against_another_process_and_dies_with_it(store: FileStore) -> None:
    code = (
        "import sys; from tailscale.state_file import FileStore\n"
        "with FileStore(sys.argv[1]).lock(): print('held', flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(StateLocked) as refusal, store.lock():
            pass
        assert refusal.value.pid == child.pid
        child.kill()
    with store.lock():
        store.save(STATE)


@pytest.mark.parametrize("content", [b"", b"not a pid", b"99" * 40])
def test_lock_with_an_unreadable_pid_is_still_a_lock(store: FileStore, content: bytes) -> None:
    with store.lock():
        store.path.with_name("state.json.lock").write_bytes(content)
        with pytest.raises(StateLocked), FileStore(store.path).lock():
            pass


def write(store: FileStore, content: bytes) -> None:
    store.path.parent.mkdir(exist_ok=True)
    store.path.write_bytes(content)
    store.path.chmod(0o600)


GOOD = json.loads(encode_state(STATE))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 400,
        encode_state(STATE)[:-20],
        b"[1]",
        b"[" * 60_000,
        b"x" * 100_000,
        json.dumps({**GOOD, "version": 2}).encode(),
        json.dumps({**GOOD, "version": "1"}).encode(),
        json.dumps({**GOOD, "version": True}).encode(),
        json.dumps({**GOOD, "machine_key": None}).encode(),
        json.dumps({**GOOD, "node_key": "privkey:1234"}).encode(),
        json.dumps({**GOOD, "node_key": "privkey:" + "0" * 64}).encode(),
        json.dumps({**GOOD, "old_node_key": 7}).encode(),
        json.dumps({**GOOD, "stable_id": ["n"]}).encode(),
        json.dumps({**GOOD, "registered": 1}).encode(),
    ],
)
def test_unreadable_file_is_an_error_and_is_left_alone(store: FileStore, content: bytes) -> None:
    write(store, content)
    with pytest.raises(StateCorrupt) as error:
        store.load()
    assert store.path.read_bytes() == content
    assert str(store.path) in str(error.value)
    assert GOOD["node_key"].removeprefix("privkey:")[:12] not in str(error.value)


def test_unknown_fields_of_the_same_version_are_ignored(store: FileStore) -> None:
    write(store, json.dumps({**GOOD, "later": {"a": 1}}).encode())
    assert store.load() == STATE


@given(st.binary(max_size=200))
def test_hostile_text_raises_only_bad_packet(text: bytes) -> None:
    with pytest.raises(BadPacket):
        decode_state_untrusted(text)


@posix
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o602])
def test_file_others_may_touch_is_refused(store: FileStore, mode: int) -> None:
    store.save(STATE)
    store.path.chmod(mode)
    with pytest.raises(StateCorrupt, match=f"{mode:04o}"):
        store.load()


@posix
def test_file_of_another_user_is_refused(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(STATE)
    stranger = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    with pytest.raises(StateCorrupt, match="belongs to user"):
        store.load()


@posix
def test_symbolic_link_is_not_followed(store: FileStore, tmp_path: Path) -> None:
    store.save(STATE)
    store.path.rename(tmp_path / "elsewhere")
    store.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateCorrupt):
        store.load()


def test_directory_in_place_of_the_file_is_refused(store: FileStore) -> None:
    store.path.mkdir(parents=True)
    with pytest.raises(StateCorrupt):
        store.load()
    with pytest.raises(StateCorrupt):
        store.save(STATE)


def refuse(number: int) -> Callable[..., object]:
    def refusing(*_args: object, **_kwargs: object) -> object:
        raise OSError(number, os.strerror(number))

    return refusing


NEWER = dataclasses.replace(STATE, stable_id="newer")


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
def test_failed_save_keeps_the_old_state(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    store.save(STATE)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse(number))
        with pytest.raises(StateCorrupt, match=os.strerror(number)):
            store.save(NEWER)
    assert store.load() == STATE
    assert os.listdir(store.path.parent) == ["state.json"]


def test_crash_before_the_rename_keeps_the_old_state(store: FileStore) -> None:
    store.save(STATE)
    store.path.with_name("state.json.new").write_bytes(b"half a sta")
    assert store.load() == STATE
    store.save(NEWER)
    assert store.load() == NEWER
    assert os.listdir(store.path.parent) == ["state.json"]


def test_drafts_of_a_killed_process_are_gone_once_the_state_is_locked(store: FileStore) -> None:
    store.save(STATE)
    for name in ("state.json.new", "state.json.relays.new", "other.json.new", "state.json.new.old", "state.jsonx.new"):
        store.path.with_name(name).write_bytes(b"half")
    with store.lock():
        left = set(os.listdir(store.path.parent))
    assert left == {"state.json", "state.json.lock", "other.json.new", "state.json.new.old", "state.jsonx.new"}


def test_a_disk_too_full_for_the_pid_of_a_lock_is_no_reason_to_stay_out(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(STATE)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse(errno.ENOSPC))
        with store.lock():
            assert store.load() == STATE


def test_unreadable_file_is_an_error(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(STATE)
    monkeypatch.setattr(os, "open", refuse(errno.EACCES))
    with pytest.raises(StateCorrupt):
        store.load()


def test_read_only_directory_is_an_error_at_the_lock(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", refuse(errno.EROFS))
    with pytest.raises(StateCorrupt, match="lock"), store.lock():
        pass


def test_error_inside_the_lock_is_not_disguised(store: FileStore) -> None:
    with pytest.raises(OSError, match="the user's own"), store.lock():
        raise OSError("the user's own")


def test_memory_store_is_locked_and_kept() -> None:
    store: Store = MemoryStore()
    with store.lock():
        assert store.load() is None
        store.save(STATE)
        with pytest.raises(StateLocked), store.lock():
            pass
    with store.lock():
        assert store.load() == STATE


def test_no_secret_shows_in_a_repr(store: FileStore) -> None:
    memory = MemoryStore(STATE)
    for shown in (repr(STATE), str(STATE), repr(store), repr(memory)):
        for key in (STATE.machine_key, STATE.node_key):
            assert key.raw.hex() not in shown
            assert repr(key.raw) not in shown


def test_an_entry_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.write("host-keys", bytes(MAX_ENTRY_LENGTH))
    with pytest.raises(ValueError, match="too many for the entry 'host-keys'"):
        store.write("host-keys", bytes(MAX_ENTRY_LENGTH + 1))
    assert store.read("host-keys") == bytes(MAX_ENTRY_LENGTH)
