"""The package's front: every public name is there, lazily, and nothing else is pulled in."""

from __future__ import annotations

import ast
import inspect
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import tailscale
from tailscale import _ownership, aio, sync
from tailscale.runtime import hostinfo
from tailscale.threads.face import DeviceOptions

HEAVY = ("trio", "httpx", "h2", "rich", "asyncio", "dpkt", "cryptography", "ssl", "noise")
# Each face returns what its world has for these.
OWN_STREAMS = {"tcp_connect", "connect_anywhere", "listen", "listen_funnel", "listen_service", "listen_tls"}
# For worlds made of trio, and for what runs in the device's own loop.
TRIO_ONLY = {
    *("announce", "answer_funnel", "answer_peers", "certificate_keeper", "check_funnel", "include", "on"),
    *("show_transfer", "spawn", "ssh_ground"),
}


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


def alone(code: str, folder: Path | None = None) -> tuple[int, str]:
    """What a fresh interpreter says, with `folder` before ours on the path."""
    first = f"import sys; sys.path.insert(0, {str(folder)!r}); " if folder else ""
    done = subprocess.run([sys.executable, "-c", first + code], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_installed_name_is_another_name_for_the_same_modules() -> None:
    code = (
        "import pytailscale.aio, pytailscale as p, tailscale, tailscale.aio; from pytailscale import sync; "
        "print(p.Device is tailscale.Device, pytailscale.aio is tailscale.aio, tailscale.aio.__spec__.name, "
        "sync.__name__, p.__version__ == tailscale.__version__)"
    )
    assert alone(code) == (0, "True True tailscale.aio tailscale.sync True\n")
    assert "no attribute 'Devise'" in alone("import pytailscale; pytailscale.Devise")[1]
    assert "No module named 'tailscale.nothing'" in alone("import pytailscale.nothing")[1]


@pytest.mark.slow
def test_the_command_line_starts_by_every_name() -> None:
    for name in ("pytailscale", "tailscale", "tailscale.cli"):
        done = subprocess.run([sys.executable, "-m", name, "version"], capture_output=True, text=True, check=True)
        assert tailscale.__version__ in done.stdout


@pytest.mark.parametrize("left_over", [True, False])
def test_a_package_that_was_overwritten_is_noticed(left_over: bool, tmp_path: Path) -> None:
    """`pip install tailscale` after ours: its `__init__` stands in our place, and our other files beside it or not."""
    package = tmp_path / "tailscale"
    package.mkdir()
    (package / "__init__.py").write_text("class Device: ...\n")
    (tmp_path / "tailscale-0.6.2.dist-info").mkdir()
    if left_over:
        (package / "_ownership.py").write_text(Path(_ownership.__file__).read_text())
    code, said = alone("import pytailscale", tmp_path)
    assert code == 1
    assert ("'tailscale' 0.6.2 is installed beside" if left_over else "was installed over it") in said


def test_every_version_agrees() -> None:
    text = (Path(tailscale.__file__).parent.parent / "pyproject.toml").read_text()
    assert f'version = "{tailscale.__version__}"' in text
    assert hostinfo.IPN_VERSION.startswith(f"{tailscale.__version__}-")


@pytest.mark.parametrize("face", [aio.Device, sync.Device])
def test_every_face_has_the_members_of_the_device(face: type) -> None:
    for name, member in vars(tailscale.Device).items():
        if not name.startswith("_") and name not in TRIO_ONLY:
            assert inspect.getdoc(getattr(face, name)), f"{face.__module__}.Device.{name}"
            if inspect.iscoroutinefunction(member):
                assert inspect.iscoroutinefunction(getattr(face, name)) is (face is aio.Device)
                ours, theirs = inspect.signature(getattr(face, name)), inspect.signature(member)
                assert ours.parameters == theirs.parameters
                assert ours == theirs or name in OWN_STREAMS


@pytest.mark.parametrize("face", [aio.Device, sync.Device])
def test_help_shows_the_options_of_every_face(face: type) -> None:
    """By name, type and default, and none of them is private."""
    shown = inspect.signature(tailscale.Device)
    assert inspect.signature(face) == shown
    assert not [name for name in shown.parameters if name.startswith("_")]
    assert "auth_key: 'AuthKey' = None" in pydoc.plain(pydoc.render_doc(face))


TYPED = """
from collections.abc import Awaitable
from typing import Literal
import tailscale
from tailscale import aio, sync

async def by_trio() -> str:
    async with tailscale.Device() as device:
        return device.name

async def by_asyncio() -> str:
    async with aio.Device(tags=["tag:ci"]) as device:
        with device.take_dials():
            return device.name

def by_threads(kind: Literal["disco", "tsmp", "icmp"]) -> tailscale.PingResult:
    with sync.Device("x", udp_port=0) as device, device.take_dials():
        return device.ping("db", kind)
"""
MISTAKES = """
from tailscale import aio, sync
sync.Device("x").ping("db", "tcp")
sync.Device(hostnam="x")
sync.Device("x").explain("db", 80, protocol="sctp")
aio.Device("x").tcp_connect("db", 80, dns="host")
"""


@pytest.mark.slow
def test_programs_of_users_are_typed(tmp_path: Path) -> None:
    """A function may end by returning inside a block, and a word that is none of the few is a mistake."""
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(TYPED)
    wrong.write_text(MISTAKES)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--follow-imports=silent"]
    config = ["--config-file", str(Path(tailscale.__file__).parent.parent / "pyproject.toml"), "--python-version=3.11"]

    def judged(file: Path) -> str:
        done = subprocess.run([*command, *config, str(file)], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert "Success" in judged(right)
    said = judged(wrong)
    assert [said.count(f"wrong.py:{line}: error") for line in range(3, 7)] == [1, 1, 1, 2], said  # and a missing await


def test_every_face_takes_what_the_device_takes() -> None:
    taken = [name for name in inspect.signature(tailscale.Device).parameters if not name.startswith("_")]
    assert taken == ["hostname", *DeviceOptions.__annotations__]
