"""What a Device was asked to be: frozen at birth (Config), and the part that may change while it runs (Preferences)."""

from __future__ import annotations

import logging
import os
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

from tailscale.errors import AuthKeyMissing
from tailscale.forwarding import EXIT_ROUTES, ForwardLimits, OnFlow
from tailscale.tun_options import TunOptions
from tailscale.uplinks import strategy_from_text
from ts_base.errors import BadPacket
from ts_base.ip import format_prefix, parse_prefix
from ts_dataplane.hard_nats import HardNatLimits
from ts_dataplane.strategies import EVERYBODY, STRATEGIES, Best, Strategy, Wishes

log = logging.getLogger("tailscale")
DEFAULT_CONTROL_URL = "https://controlplane.tailscale.com"
DEFAULT_LOGIN_TIMEOUT = 300.0
DEFAULT_READY_TIMEOUT = 60.0
DEFAULT_CLOSE_TIMEOUT = 4.0
LONGEST_KEY = 4096
MAX_UPLINKS = 4

AuthKey = str | Callable[[], "str | Awaitable[str]"] | None
"""A key or a token: its text, or what makes one when it is needed."""


WantedUplinks = tuple[str, ...] | Literal["all"] | None
"""Interfaces by name, all that there are, or none in particular: then the system chooses."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """What `device.set(...)` may change."""

    hostname: str
    tags: tuple[str, ...] = ()
    accept_routes: bool = True
    exit_node: str | None = None
    advertise_routes: tuple[str, ...] = ()
    advertise_exit_node: bool = False
    shields_up: bool = False
    wants_the_name: bool = True  # somebody chose it; the machine's own name may well be shared

    @property
    def offered_routes(self) -> tuple[str, ...]:
        """Everything that we offer to forward: an exit node offers the rest of the world."""
        exits = EXIT_ROUTES if self.advertise_exit_node else ()
        return tuple(dict.fromkeys((*self.advertise_routes, *exits)))


def is_login_forced() -> bool:
    """Upstream's switch for logging in although the stored state is good."""
    return os.environ.get("TSNET_FORCE_LOGIN", "") in {"1", "t", "T", "TRUE", "true", "True"}


def rig_flag_from_environment(name: str) -> bool:
    """Whether one of upstream's switches for test rigs is on; never silently."""
    is_set = os.environ.get(name, "").lower() in {"1", "t", "true"}
    if is_set:
        log.warning("%s is set: this is for test rigs, not for real tailnets", name)
    return is_set


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a Device was given, with the environment already read. Secrets stay out of the repr."""

    control_url: str
    preferences: Preferences
    auth_key: AuthKey = field(default=None, repr=False)
    client_id: str = ""
    id_token: AuthKey = field(default=None, repr=False)
    audience: str = ""
    force_login: bool = field(default_factory=is_login_forced)
    ephemeral: bool = True
    on_login_url: Callable[[str], Any] | None = None
    login_timeout: float = DEFAULT_LOGIN_TIMEOUT
    ready_timeout: float = DEFAULT_READY_TIMEOUT
    udp_port: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    handle_sigterm: bool = True
    peerapi: bool = True
    uplinks: WantedUplinks = None
    paths: Wishes = field(default_factory=Wishes)
    relay_over_http: bool = field(default_factory=partial(rig_flag_from_environment, "TS_DEBUG_USE_DERP_HTTP"))
    never_direct: bool = field(default_factory=partial(rig_flag_from_environment, "TS_DEBUG_NEVER_DIRECT_UDP"))
    forward: ForwardLimits = field(default_factory=ForwardLimits)
    on_flow: OnFlow | None = None
    overlay: TunOptions | None = None
    hard_nats: HardNatLimits = field(default_factory=HardNatLimits)
    certificates: Any = None  # a `CertificateSource`, which stands above this

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Config is not pickled or deep-copied: it may hold an auth key")


class Logins(NamedTuple):
    """By what a device may log in: a key or what makes keys, or who it is as a workload."""

    auth_key: AuthKey
    client_id: str = ""
    id_token: AuthKey = None
    audience: str = ""


def logins(auth_key: AuthKey, client_id: str | None, id_token: AuthKey, audience: str | None) -> Logins:
    """What was given, completed from the environment: upstream's names in upstream's order, below every argument.

    ValueError for halves of a workload's identity, and for two logins.
    """
    environment = os.environ.get
    if auth_key is None and not client_id:
        auth_key = auth_key_from_environment()
    if auth_key:
        if client_id or id_token or audience:
            raise ValueError("give auth_key=, or client_id= with id_token= or audience=: not both")
        return Logins(key_or_its_file(auth_key))
    if not id_token and not audience:
        id_token, audience = environment("TS_ID_TOKEN"), environment("TS_AUDIENCE")
    if auth_key is None:  # "" asks for a login page
        client_id = client_id or environment("TS_CLIENT_ID")
    if bool(client_id) != bool(id_token or audience) and (auth_key is None or client_id):
        raise ValueError(
            "a workload identity is client_id= (or TS_CLIENT_ID) with one of id_token= (or TS_ID_TOKEN) and audience= "
            "(or TS_AUDIENCE)"
        )
    if id_token and audience:
        raise ValueError("give id_token= or audience= (or TS_ID_TOKEN or TS_AUDIENCE): not both")
    if not client_id:
        return Logins(auth_key)
    return Logins(None, client_id, key_or_its_file(id_token), audience or "")


def auth_key_from_environment() -> str | None:
    names = ("TS_AUTHKEY", "TS_AUTH_KEY", "TS_CLIENT_SECRET")
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def has_login_in_environment() -> bool:
    """Whether a device without any argument can log in by itself."""
    return bool(auth_key_from_environment() or os.environ.get("TS_CLIENT_ID"))


def key_or_its_file(key: AuthKey) -> AuthKey:
    """`file:/run/secrets/key` stands for what that file holds when a key is needed: it may be replaced meanwhile."""
    if not isinstance(key, str) or not key.startswith("file:"):
        return key
    return partial(_read_key, key.removeprefix("file:"))


def _read_key(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="strict") as file:
            key = file.read(LONGEST_KEY + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AuthKeyMissing(f"the file {path} cannot be read: {getattr(error, 'strerror', 'it is no text')}") from None
    if not key or len(key) > LONGEST_KEY:
        raise AuthKeyMissing(f"the file {path} is {'empty' if not key else 'far longer than any key'}")
    return key


def control_url_from_environment() -> str:
    return os.environ.get("TS_CONTROL_URL") or DEFAULT_CONTROL_URL


def default_hostname() -> str:
    """`TS_HOSTNAME`, or a clean form of the machine's name."""
    return os.environ.get("TS_HOSTNAME") or clean_hostname(socket.gethostname())


def clean_routes(texts: Iterable[str]) -> tuple[str, ...]:
    """Prefixes as control writes them; ValueError for what is none."""
    if isinstance(texts, str):
        raise TypeError(
            f'advertise_routes takes a list of prefixes, such as ["192.168.7.0/24"], not the text {texts!r}'
        )
    routes = []
    for text in texts:
        try:
            routes.append(format_prefix(parse_prefix(text)))
        except BadPacket as problem:
            raise ValueError(f"advertise_routes takes prefixes such as 192.168.7.0/24: {problem}") from None
    return tuple(routes)


def checked(preferences: Preferences) -> Preferences:
    """The same, where they go together."""
    if preferences.advertise_exit_node and preferences.exit_node:
        raise ValueError(
            "a device uses an exit node or is one: exit_node=None stops using one, advertise_exit_node=False stops "
            "offering to be one"
        )
    return preferences


def clean_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags as the policy writes them; the error for what is none."""
    if isinstance(tags, str):
        raise TypeError(f'tags takes a list of names, such as ["tag:ci"], not the text {tags!r}')
    found = tuple(tags)
    for tag in found:
        if not re.fullmatch(r"tag:[A-Za-z][A-Za-z0-9-]*", tag):
            raise ValueError(
                f'tags takes names such as "tag:ci" (tag:, a letter, letters, digits and dashes), not {tag!r}'
            )
    return found


def first_preferences(
    hostname: str | None,
    tags: Iterable[str],
    accept_routes: bool,
    exit_node: str | None,
    advertise_routes: Iterable[str],
    advertise_exit_node: bool,
    shields_up: bool,
) -> Preferences:
    """What a new device prefers, each as a tailnet writes it; the error for what is nothing of the kind."""
    return checked(
        Preferences(
            hostname=clean_hostname(hostname) if hostname else default_hostname(),
            tags=clean_tags(tags),
            accept_routes=accept_routes,
            exit_node=exit_node,
            advertise_routes=clean_routes(advertise_routes),
            advertise_exit_node=advertise_exit_node,
            shields_up=shields_up,
            wants_the_name=bool(hostname or os.environ.get("TS_HOSTNAME")),
        )
    )


def checked_uplinks(wanted: Sequence[str] | None) -> WantedUplinks:
    """What a user wrote, as far as it can be judged without looking at the machine."""
    if wanted is None:
        return None
    if wanted == "all" or list(wanted) == ["all"]:
        return "all"
    if isinstance(wanted, str):
        raise TypeError(f'uplinks takes a list of interfaces, such as ["wlan0", "wwan0"], or "all", not {wanted!r}')
    names = tuple(wanted)
    if len(set(names)) != len(names):
        raise ValueError(f"each uplink is named once: {', '.join(names)}")
    if len(names) > MAX_UPLINKS:
        raise ValueError(f"at most {MAX_UPLINKS} uplinks are used at once, not {len(names)}: {', '.join(names)}")
    return names or None


def checked_paths(wish: Strategy | str | Mapping[str, Strategy | str]) -> Wishes:
    """A strategy for all, or for each peer by name."""
    if not isinstance(wish, Mapping):
        return Wishes(default=_strategy(wish))
    by_name = {name: _strategy(one) for name, one in wish.items()}
    return Wishes(by_name.pop(EVERYBODY, Best()), by_name)


def _strategy(wish: Strategy | str) -> Strategy:
    if isinstance(wish, str):
        return strategy_from_text(wish)
    if not isinstance(wish, STRATEGIES):
        raise TypeError(f"paths takes strategies, such as Best() or Redundant(2), alone or by peer, not {wish!r}")
    return wish


def clean_hostname(text: str) -> str:
    """Lower-case letters, digits and dashes, at most 63: what a tailnet accepts as a name."""
    if not isinstance(text, str):
        raise TypeError(f'hostname is text, such as "worker", not {text!r}')
    label = re.sub(r"[^a-z0-9-]+", "-", text.split(".")[0].lower()).strip("-")
    return label[:63].strip("-") or "python"
