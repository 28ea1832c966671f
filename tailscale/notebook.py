"""`%load_ext tailscale`, then `%tailnet up NAME`: a device in a notebook without a line of Python.

Owns the words after `%tailnet`, the one device they are about, and that whatever fails is one sentence. What a verb
finds is the value that `tailscale.sync.Device` returns, which notebooks show as a table. Where no device is up here but
a daemon runs, its command line answers. Knows IPython only by the shell that it is handed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from tailscale import sync
from tailscale.as_html import link, page
from tailscale.daemon.client import Client
from tailscale.daemon.places import places
from tailscale.daemon.requests import DaemonError
from tailscale.errors import TailscaleError
from tailscale.faults import in_option_words
from tailscale.foreign_text import for_terminal, web_address
from ts_base.optional import optional

if TYPE_CHECKING:
    from tailscale.threads.face import DeviceOptions

NAME = "tailnet"
HELP = """%tailnet up [NAME] [--ephemeral] [--state PATH] [--control-url URL] [--auth-key KEY] [--timeout SECONDS]
%tailnet down
%tailnet status | peers | netcheck | health
%tailnet ip [PEER] | ping PEER | whois ADDRESS | why PEER[:PORT]
The device is `tailnet.device`. The key comes from TS_AUTHKEY, or as --auth-key $key from a variable: what is written
into a cell is saved with the notebook."""
DEFAULT_TIMEOUT = 300.0  # a person may have to log the device in
BY_DAEMON = 60.0


class Refused(TailscaleError):
    """What `%tailnet` says instead of a traceback. `fault` is that of the error behind it."""

    def __init__(self, sentence: str, fault: str = "") -> None:
        self.fault = fault
        super().__init__(sentence)

    def _render_traceback_(self) -> list[str]:
        """IPython shows these lines, and no others."""
        return [for_terminal(str(self))]


class LoginPage:
    """An address that somebody has to open; a link where notebooks can show one."""

    def __init__(self, url: str) -> None:
        self.url = web_address(url)

    def __repr__(self) -> str:
        return f"To let this device into the tailnet, open: {self.url}"

    def _repr_html_(self) -> str:
        return f"To let this device into the tailnet, open {link(self.url)}"


class Tailnet:
    """What `%tailnet` is about, as the variable `tailnet`: one device, or none."""

    def __init__(self, show: Callable[[object], object]) -> None:
        self.device: sync.Device | None = None
        """The device that `%tailnet up` has opened; None before, and after `%tailnet down`."""
        self._show = show
        self._wanted: tuple[object, ...] = ()

    def run(self, line: str) -> Any:
        """Do what the words after `%tailnet` say. What they find is returned, to be shown or kept."""
        try:
            words = shlex.split(line)
        except ValueError as problem:
            raise Refused(f"%tailnet: {problem}") from None
        if not words or words[0] in ("help", "-h", "--help"):
            print(HELP)
            return None
        verb = VERBS.get(words[0])
        if verb is None:
            raise Refused(f"%tailnet has no verb {words[0]!r}: {', '.join(VERBS)}")
        try:
            return verb(self, words[1:])
        except (TailscaleError, OSError, ValueError) as error:
            raise Refused(in_option_words(str(error)), getattr(error, "fault", "")) from None

    # Verbs

    def up(self, words: list[str]) -> sync.Device:
        """Join, or go on with the device that is up if the same was asked for."""
        asked = _read_up(words)
        wanted = (asked.name, asked.ephemeral, asked.state, asked.control_url)
        if self.device is not None and self.device.is_open:
            if wanted == self._wanted:
                return self.device
            self.down([])
        options: DeviceOptions = {
            "auth_key": asked.auth_key,
            "control_url": asked.control_url,
            "state": asked.state,
            "ephemeral": True if asked.ephemeral else None,
            "on_login_url": lambda url: self._show(LoginPage(url)),
            "login_timeout": asked.timeout,
        }
        device = sync.Device(asked.name, **options).open()  # an interrupt here leaves nothing behind
        self.device, self._wanted = device, wanted
        return device

    def down(self, words: list[str]) -> None:
        """Leave the tailnet. Once more is no mistake."""
        _nothing_more("down", words)
        device, self.device = self.device, None
        if device is None or not device.is_open:
            print("nothing is up here")
            return
        name = device.name
        device.close()
        print(for_terminal(f"{name} has left the tailnet"))

    def ask(self, verb: str, words: list[str]) -> Any:
        """One of QUESTIONS, of the device here; of the daemon where there is none."""
        least, most, question = QUESTIONS[verb]
        if not least <= len(words) <= most:
            needs = {(0, 0): "takes nothing more", (0, 1): "takes a peer at most", (1, 1): "takes one name or address"}
            raise Refused(f"%tailnet {verb} {needs[least, most]}")
        if self.device is not None and self.device.is_open:
            return question(self.device, *words)
        if not _daemon_runs():
            raise Refused("nothing is up here: %tailnet up NAME joins, as does a daemon (pytailscale up)")
        return _ask_daemon(verb, words)

    def __repr__(self) -> str:
        return f"<%tailnet {self.device!r}>" if self.device is not None else "<%tailnet: nothing is up>"

    def _repr_html_(self) -> str:
        return self.device._repr_html_() if self.device is not None else page(repr(self), {})


# Questions to a device


def _ip(device: sync.Device, peer: str = "") -> list[str]:
    node = device.peers[peer] if peer and peer != device.hostname else device.node
    return list(node.addresses)


def _whois(device: sync.Device, who: str) -> Any:
    node = device.peers.get(who)
    return device.whois(node.addresses[0] if node is not None else who)


def _why(device: sync.Device, where: str) -> Any:
    host, colon, port = where.rpartition(":")
    if not colon or not port.isdigit() or (":" in host and not host.endswith("]")):
        return device.explain(where.strip("[]"))
    return device.explain(host.strip("[]"), int(port))


QUESTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    # verb     arguments    answer
    "status": (0, 0, lambda device: device.status()),
    "peers": (0, 0, lambda device: device.peers),
    "netcheck": (0, 0, lambda device: device.netcheck()),
    "health": (0, 0, lambda device: device.health or "no warnings"),
    "ip": (0, 1, _ip),
    "ping": (1, 1, lambda device, peer: device.ping(peer)),
    "whois": (1, 1, _whois),
    "why": (1, 1, _why),
}


def _asking(verb: str) -> Callable[[Tailnet, list[str]], Any]:
    return lambda net, words: net.ask(verb, words)


AT_THE_DAEMON = {"peers": "status", "health": "status"}  # which of its commands tells the same
VERBS: dict[str, Callable[[Tailnet, list[str]], Any]] = {
    "up": Tailnet.up,
    "down": Tailnet.down,
    **{verb: _asking(verb) for verb in QUESTIONS},
}


# The words of `up`


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence without the words that were typed: a key may be among them."""
        sentence = "there are words that it does not know" if "unrecognized" in message else message
        raise Refused(f"%tailnet up: {sentence} (%tailnet help)")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError("takes seconds, such as 60")
    return value


def _name(text: str) -> str:
    if text.startswith("tskey-"):
        raise argparse.ArgumentTypeError("that is a key and no name: give it as --auth-key $key, or in TS_AUTHKEY")
    return text


def _read_up(words: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="%tailnet up", add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?", type=_name)
    parser.add_argument("--ephemeral", action="store_true")
    for option in ("--state", "--control-url", "--auth-key"):
        parser.add_argument(option)
    parser.add_argument("--timeout", type=_seconds, default=DEFAULT_TIMEOUT)
    return parser.parse_args(words)


def _nothing_more(verb: str, words: list[str]) -> None:
    if words:
        raise Refused(f"%tailnet {verb} takes nothing more")


# The daemon of this machine


def _daemon_runs() -> bool:
    try:
        Client(places(None).socket).get("status")
    except DaemonError:
        return False
    return True


def _ask_daemon(verb: str, words: list[str]) -> None:
    """Its answer as text. A program of its own: here a loop of the notebook's runs already."""
    command = [sys.executable, "-m", "tailscale.cli", AT_THE_DAEMON.get(verb, verb), *words]
    began = time.monotonic()
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=BY_DAEMON, check=False
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"the daemon has not answered within {time.monotonic() - began:.0f} s") from None
    print(done.stdout, end="")
    if done.returncode:
        raise Refused(done.stderr.strip() or f"%tailnet {verb} failed")


# What IPython calls

_here: Tailnet | None = None


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext tailscale`. Once more is the same: a device that is up stays up."""
    global _here  # one for the process, whatever becomes of the notebook's variables
    display = optional("IPython.display", "display")
    _here = _here or Tailnet(display.display if display is not None else print)
    here = _here

    def tailnet(line: str) -> Any:
        shell.push({NAME: here})  # after a %reset too
        return here.run(line)

    tailnet.__doc__ = HELP
    shell.register_magic_function(tailnet, "line", NAME)
    shell.push({NAME: here})


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext tailscale`: the magic goes, and its device leaves."""
    shell.magics_manager.magics["line"].pop(NAME, None)
    if _here is not None and _here.device is not None:
        _here.down([])
