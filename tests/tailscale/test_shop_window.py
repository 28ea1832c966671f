"""The package's front: every public name is there, lazily, and nothing else is pulled in."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tailscale
from tailscale import _ownership, aio, sync
from tailscale.runtime import hostinfo
from tailscale.threads.face import DeviceOptions

HEAVY = ("trio", "httpx", "h2", "rich", "asyncio", "dpkt", "cryptography", "ssl", "noise")
OTHER_WORDS = {"tcp_connect", "connect_anywhere", "listen"}  # each face has what its world calls these
TRIO_ONLY = {"announce", "on"}  # a block beside a listener; for worlds made of trio


def test_every_public_name_is_importable() -> None:
    for name in tailscale.__all__:
        assert getattr(tailscale, name) is not None
    assert set(tailscale.__all__) <= set(dir(tailscale))


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(tailscale.__file__).read_text())
    typed = {
        alias.asname
        for block in tree.body
        if isinstance(block, ast.If)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == set(tailscale.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Devise"):
        tailscale.Devise  # noqa: B018


def test_import_pulls_nothing_heavy() -> None:
    code = f"import sys, tailscale; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_using_a_device_pulls_no_http_client_and_no_other_loop() -> None:
    code = (
        "import sys, tailscale; tailscale.Device; "
        "print([m for m in ('httpx', 'rich', 'asyncio', 'dpkt', 'pytest') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("rival", _ownership.RIVALS)
def test_a_rival_distribution_is_named(rival: str, tmp_path: Path) -> None:
    (tmp_path / "pytailscale-0.1.0.dist-info").mkdir()
    _ownership.check_import_name(str(tmp_path))
    (tmp_path / f"{rival.replace('-', '_')}-9.9.dist-info").mkdir()
    with pytest.raises(ImportError, match=f"'{rival}' 9.9"):
        _ownership.check_import_name(str(tmp_path))


def test_every_version_agrees() -> None:
    text = (Path(tailscale.__file__).parent.parent / "pyproject.toml").read_text()
    assert f'version = "{tailscale.__version__}"' in text
    assert hostinfo.IPN_VERSION.startswith(f"{tailscale.__version__}-")


@pytest.mark.parametrize("face", [aio.Device, sync.Device])
def test_every_face_has_the_members_of_the_device(face: type) -> None:
    for name, member in vars(tailscale.Device).items():
        if not name.startswith("_") and name not in OTHER_WORDS | TRIO_ONLY:
            assert inspect.getdoc(getattr(face, name)), f"{face.__module__}.Device.{name}"
            if inspect.iscoroutinefunction(member):
                assert inspect.iscoroutinefunction(getattr(face, name)) is (face is aio.Device)
                assert inspect.signature(getattr(face, name)) == inspect.signature(member)


def test_every_face_takes_what_the_device_takes() -> None:
    taken = [name for name in inspect.signature(tailscale.Device).parameters if not name.startswith("_")]
    assert taken == ["hostname", *DeviceOptions.__annotations__]
