"""What each way in loads: lists that say why. Who adds an import adds its reason, or puts it where it is used.

Libraries of others are listed in full. Of our own rooms and wings the ones are listed that a program does without.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

# What others made, and what it is for.
OF_A_DEVICE = {
    "attr": "trio's",
    "attrs": "trio's",
    "backports": "zstd of the map stream, where Python has none of its own",
    "cryptography": "curve25519, ChaCha20-Poly1305, BLAKE2s",
    "h11": "the upgrades of control and relays, what control asks",
    "h2": "the conversation with control",
    "hpack": "h2's",
    "hyperframe": "h2's",
    "idna": "trio's",
    "msgspec": "control's JSON",
    "nacl": "disco's boxes and the lock's signatures",
    "noise": "handshakes with control and peers",
    "outcome": "trio's",
    "sniffio": "trio's",
    "sortedcontainers": "trio's",
    "trio": "the loop",
    "typing_extensions": "msgspec's",
}
# Of the standard library and ours: what is loaded by whoever uses it, and what that would be.
NOT_OF_A_DEVICE = {
    "argparse": "a command line",
    "asyncio": "tailscale.aio",
    "concurrent.futures": "tailscale.sync",
    "cryptography.x509": "a certificate",
    "email": "a web server; a proxy in the environment",
    "http.client": "a proxy in the environment",
    "importlib.metadata": "`pytailscale version`",
    "tailscale.certificates": "a certificate",
    "tailscale.files": "Taildrop, a mesh",
    "tailscale.funnel.listening": "Funnel",
    "tailscale.http": "a web server or client",
    "tailscale.http1": "the first request to the peer API",
    "tailscale.kernel.life": "a TUN device",
    "tailscale.lock": "device.lock_status()",
    "tailscale.mesh": "a mesh",
    "tailscale.proxy": "exits",
    "tailscale.runtime.aws_tokens": "a login as an Amazon workload",
    "tailscale.serve": "a published service",
    "tailscale.ssh": "SSH",
    "tailscale.taildrop": "Taildrop",
    "tailscale.testing": "tests",
    "tailscale.threads": "another face",
    "ts_acme": "a certificate",
    "ts_mesh": "a mesh",
    "ts_proxy": "exits",
    "urllib.request": "a proxy in the environment",
    "xml": "a router that speaks UPnP",
}
DEVICE = "import tailscale; tailscale.Device"
WAYS_IN: dict[str, tuple[str, set[str], set[str]]] = {
    # what is run, libraries beyond those of a Device, what it may load of NOT_OF_A_DEVICE
    "a Device": (DEVICE, set(), set()),
    "a Mesh": (
        f"{DEVICE}; from tailscale.mesh import Mesh",
        set(),  # wsproto comes with the first session
        {"tailscale.files", "tailscale.http1", "tailscale.mesh", "ts_mesh"},
    ),
    "exits": (f"{DEVICE}; from tailscale.proxy import Exits", set(), {"tailscale.proxy", "ts_proxy"}),
    "asyncio": (
        "from tailscale import aio; aio.Device",
        set(),
        {"asyncio", "concurrent.futures", "tailscale.threads"},
    ),
    "threads": ("from tailscale import sync; sync.Device", set(), {"concurrent.futures", "tailscale.threads"}),
}
JOINED = """
import trio, trio.testing
from tailscale.testing import Tailnet
import tailscale; tailscale.Device

async def main():
    known = set(sys.modules)
    async with Tailnet() as net:
        one, other = await net.device("one"), await net.device("other")
        print("ENTERED", *sorted(set(sys.modules) - known))
        known = set(sys.modules)
        listener = await other.listen(80)
        stream = await one.tcp_connect("other", 80)
        taken = await listener.accept()
        await stream.send_all(b"x")
        assert await taken.receive_some() == b"x"
        print("STREAM", *sorted(set(sys.modules) - known))

trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
"""


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter has after `code` and had not before."""
    program = f"import sys; before = set(sys.modules)\n{code}\nprint()\nprint(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def libraries(modules: set[str]) -> set[str]:
    """Whose code it is, apart from ours, Python's own, and the compiled parts of a library that is listed anyway."""
    ours = {"tailscale", "pytailscale"}
    tops = {name.partition(".")[0] for name in modules}
    return {top for top in tops - sys.stdlib_module_names - ours if not top.startswith(("ts_", "_"))}


@pytest.mark.parametrize("way", WAYS_IN)
def test_a_way_in_loads_what_is_said_and_why(way: str) -> None:
    code, more, used = WAYS_IN[way]
    modules = loaded(code)
    assert libraries(modules) - OF_A_DEVICE.keys() - more == set()
    assert modules & NOT_OF_A_DEVICE.keys() - used == set()
    assert modules & used == used, "a list that says more than is loaded is out of date"


def test_the_list_of_a_device_is_not_out_of_date() -> None:
    assert OF_A_DEVICE.keys() - libraries(loaded(DEVICE)) <= {"backports"}  # Python 3.14 has zstd


def test_entering_and_a_first_stream_load_nothing_more() -> None:
    done = subprocess.run([sys.executable, "-c", f"import sys\n{JOINED}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entered, stream = (set(line.split()[1:]) for line in done.stdout.splitlines())
    # ssl's, for a server's name; and since Python 3.13 random's, for the seed of the network of tests.
    assert entered <= {"encodings.idna", "stringprep", "_sha2"}
    assert stream == set()


LIGHT = {
    "nothing yet": "import tailscale",
    "--help": "from tailscale.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass",
    "wrong usage": "from tailscale.cli import main\ntry:\n    main(['pong'])\nexcept SystemExit: pass",
    "help of a verb": "from tailscale.cli import main\ntry:\n    main(['ping', '--help'])\nexcept SystemExit: pass",
    "a verb of the daemon's": "import tailscale.daemon.light",
}


@pytest.mark.parametrize("way", LIGHT)
def test_what_is_light_loads_no_library_of_others(way: str) -> None:
    modules = loaded(LIGHT[way])
    assert libraries(modules) == set()
    assert modules & {"ssl", "asyncio", "dataclasses", "inspect", "logging", "subprocess"} == set()
    assert {name.partition(".")[0] for name in modules if name.startswith("ts_")} <= {"ts_base"}
