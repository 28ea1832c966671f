"""A state on a read-only mount, as Kubernetes mounts secrets: of root, open to all, and a link."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tailscale
from tailscale.state_file import State

pytestmark = [pytest.mark.interop, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")]
STATE = State.generate(bytes)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """What a kubelet makes of a Secret with the key state.json."""
    folder = tmp_path / "secret"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    try:
        data = folder / "..data"
        data.mkdir()
        tailscale.FileStore(data / "state.json").save(STATE)
        (data / "state.json").chmod(0o644)
        (folder / "state.json").symlink_to("..data/state.json")
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_mounted_state_is_read_and_locked(mounted: Path) -> None:
    store, other = tailscale.FileStore(mounted), tailscale.FileStore(mounted)
    with store.lock():
        assert store.load() == STATE
        with pytest.raises(tailscale.StateLocked), other.lock():
            pass
    with pytest.raises(tailscale.StateCorrupt, match=r"cannot write .*Read-only"):
        store.save(STATE)


def test_the_same_on_a_writable_mount_is_refused(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", mounted], check=True)
    with pytest.raises(tailscale.StateCorrupt, match="symbolic links"):
        tailscale.FileStore(mounted / "state.json").load()
    with pytest.raises(tailscale.StateCorrupt, match="others may read it"):
        tailscale.FileStore(mounted / "..data" / "state.json").load()
