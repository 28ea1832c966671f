"""What clients of the LocalAPI may change: from upstream's preferences to ours, live and for the next start.

Owns which preference means what to a node in user space: some are ours, some mean nothing here and are only remembered,
and to change any other is refused. Keeps what was changed in the state, as the entry "daemon".
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from typing import Any, Protocol

from tailscale._spelling import clean_routes
from tailscale.daemon import ipn
from tailscale.daemon.answering import NotBuilt
from tailscale.daemon.keeper import Keeper
from tailscale.errors import StateCorrupt
from tailscale.forwarding import EXIT_ROUTES
from tailscale.nodes import named
from tailscale.state_file import NamedStore
from ts_base.optional import optional
from ts_control.ssh_policy import PERMISSION

log = logging.getLogger("tailscale.daemon")
ENTRY = "daemon"
# Of the kernel, of a desktop, of the operating system's resolver: nothing that a node in user space would do otherwise.
REMEMBERED = frozenset(
    (
        *("AutoUpdate", "CorpDNS", "ExitNodeAllowLANAccess", "ForceDaemon", "InternalExitNodePrior", "NetfilterKind"),
        *("NetfilterMode", "NoSNAT", "NoStatefulFiltering", "NotepadURLs", "ProfileName", "Sync"),
    )
)
KINDS: dict[str, type] = {
    **dict.fromkeys(("ControlURL", "ExitNodeID", "ExitNodeIP", "Hostname"), str),
    **dict.fromkeys(("RouteAll", "RunSSH", "ShieldsUp", "WantRunning"), bool),
    **dict.fromkeys(("AdvertiseRoutes", "AdvertiseServices", "AdvertiseTags"), list),
}
LIVE = frozenset((
    *("accept_routes", "advertise_exit_node", "advertise_routes", "exit_node", "hostname", "paths", "shields_up"),
    *("tags", "uplinks"),
))  # fmt: skip


class Services(Protocol):
    """The Services that are served, and for which of them control may send somebody here."""

    @property
    def advertised(self) -> tuple[str, ...]: ...

    def advertise(self, services: Collection[str]) -> None: ...


class Prefs:
    """One daemon's preferences, under upstream's names."""

    def __init__(self, keeper: Keeper, store: NamedStore, serving: Services) -> None:
        self._keeper = keeper
        self._serving = serving
        self._store = store
        self._kept: dict[str, Any] = {}
        self._watchers: list[Callable[[], None]] = []
        self.runs_ssh = False
        """Whether it was asked for here; `watch` tells of it."""
        self.has_ssh_section = False
        """Whether config.toml asks for it, which nobody takes back here."""

    # Kept between runs

    def load(self) -> None:
        """What earlier runs were told. What the command line and config.toml say comes after, and wins."""
        text = self._store.read(ENTRY)
        try:
            told = json.loads(text) if text is not None else {}
            self._kept = {name: told["remembered"][name] for name in told.get("remembered", ()) if name in REMEMBERED}
            options = {name: value for name, value in told.get("options", {}).items() if name in LIVE}
            wishes = self._keeper.wishes
            wishes.options = options | wishes.options
            wishes.is_wanted = told.get("is_wanted", True) is True
            self.runs_ssh = told.get("runs_ssh") is True
        except (ValueError, TypeError, AttributeError, KeyError):
            log.warning("what the daemon kept of its preferences cannot be read: it begins with none")

    def _save(self) -> None:
        wishes = self._keeper.wishes
        told = {
            "remembered": self._kept,
            "options": {name: value for name, value in wishes.options.items() if name in LIVE},
            "is_wanted": wishes.is_wanted,
            "runs_ssh": self.runs_ssh,
        }
        try:
            self._store.write(ENTRY, json.dumps(told).encode())
        except StateCorrupt as error:
            raise StateCorrupt(
                f"the change is in force, and lost when the daemon ends: {error}. Mend that, and make the change again"
            ) from error

    # Asked

    def to_json(self) -> dict[str, Any]:
        """ipn.Prefs."""
        keeper = self._keeper
        is_logged_out = keeper.has_device and keeper.device.state == "logged_out"
        told = ipn.prefs_json(
            keeper.control_url,
            keeper.preferences(),
            keeper.netmap(),
            self._kept,
            is_wanted=keeper.wishes.is_wanted,
            is_logged_out=is_logged_out,
            runs_ssh=self.runs_ssh or self.has_ssh_section,
        )
        return told | {"AdvertiseServices": list(self._serving.advertised) or None}

    # Changed

    def check(self, masked: dict[str, Any]) -> dict[str, Any]:
        """The changes in our own words. ValueError and NotBuilt say what cannot be."""
        present = self.to_json()
        changes: dict[str, Any] = {}
        for name, value in masked.items():
            if name.endswith("Set") and value is True:
                self._translate(name.removesuffix("Set"), masked, present, changes)
        return changes

    def _translate(self, name: str, masked: dict[str, Any], present: dict[str, Any], changes: dict[str, Any]) -> None:
        value = masked.get(name)
        if name in KINDS and value is not None and not _is(value, KINDS[name]):
            raise ValueError(f"{name} is of the wrong type")
        if name in REMEMBERED:
            changes.setdefault("remembered", {})[name] = value
        elif name == "Hostname":
            changes["hostname"] = value or ""
        elif name == "RouteAll":
            changes["accept_routes"] = bool(value)
        elif name == "ShieldsUp":
            changes["shields_up"] = bool(value)
        elif name == "RunSSH":
            changes["runs_ssh"] = self._check_ssh(bool(value))
        elif name == "AdvertiseTags":
            changes["tags"] = tuple(value or ())
        elif name == "AdvertiseServices":
            changes["services"] = tuple(value or ())
        elif name == "AdvertiseRoutes":
            routes = clean_routes(value or ())  # upstream has one list for both
            changes["advertise_exit_node"] = set(EXIT_ROUTES) <= set(routes)
            changes["advertise_routes"] = tuple(
                route for route in routes if route not in EXIT_ROUTES or not changes["advertise_exit_node"]
            )
        elif name in ("ExitNodeID", "ExitNodeIP"):
            wanted = masked.get("ExitNodeID") or masked.get("ExitNodeIP")
            changes["exit_node"] = self._exit_node(wanted) if wanted else None
        elif name == "ControlURL":
            changes["control_url"] = value or ""
        elif name == "WantRunning":
            changes["is_wanted"] = bool(value)
        elif name != "LoggedOut" and (value or None) != (present.get(name) or None) and not _is_default(value):
            raise NotBuilt(f"{name} cannot be set: this daemon has nothing that it would change")

    def _check_ssh(self, is_wanted: bool) -> bool:
        """Upstream refuses it where the tailnet does, when it can know."""
        netmap = self._keeper.netmap()
        if not is_wanted:
            if self.has_ssh_section:
                raise ValueError("config.toml has [ssh]: take it out there")
        elif netmap is not None and PERMISSION not in netmap.self_node.cap_map:
            raise ValueError("this tailnet does not let this node be an SSH server: allow SSH in its settings")
        elif optional("asyncssh", "SSHServer") is None:
            raise ValueError('an SSH server needs asyncssh: pip install "pytailscale[ssh]"')
        return is_wanted

    def _exit_node(self, wanted: str) -> str:
        """Upstream refuses one that does not offer it, when it can know."""
        netmap = self._keeper.netmap()
        if netmap is None:
            return wanted
        found = named(wanted, netmap.peers.values())
        if found is None:
            raise ValueError(f"no node {wanted} is in this tailnet")
        if not set(ipn.EXITS) & set(found.allowed_ips or ()):
            raise ValueError(
                f"{found.name.partition('.')[0]} does not offer to be an exit node, or is not approved as one"
            )
        return found.stable_id

    async def apply(self, masked: dict[str, Any]) -> dict[str, Any]:
        """Change them, and give them all as they are now. StateCorrupt where they cannot be kept."""
        changes = self.check(masked)
        self._kept |= changes.pop("remembered", {})
        is_wanted = changes.pop("is_wanted", None)
        control_url = changes.pop("control_url", "")
        services = changes.pop("services", None)
        if services is not None:
            self._serving.advertise(services)
        self.runs_ssh = changes.pop("runs_ssh", self.runs_ssh)
        live = {name: value for name, value in changes.items() if name in LIVE}
        if "hostname" in live and not live["hostname"]:
            live.pop("hostname")  # upstream's "" means the machine's own name, which is what we have then
        keeper = self._keeper
        if live and keeper.has_device and keeper.is_ready:
            await keeper.device.set(**live)
        keeper.wishes.options |= live
        if is_wanted is False:
            await keeper.stop()
        elif is_wanted or (control_url and keeper.wishes.is_wanted):
            await keeper.start(**({"control_url": control_url.rstrip("/")} if control_url else {}))
        try:
            self._save()
        finally:
            self.tell()
        return self.to_json()

    def watch(self, changed: Callable[[], None]) -> None:
        self._watchers.append(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        self._watchers.remove(changed)

    def tell(self) -> None:
        for changed in self._watchers:
            changed()


def _is(value: Any, kind: type) -> bool:
    return type(value) is kind and (not isinstance(value, list) or all(isinstance(each, str) for each in value))


def _is_default(value: Any) -> bool:
    """Upstream's way to say nothing: null, false, 0, "", and structs of these."""
    if isinstance(value, dict):
        return all(map(_is_default, value.values()))
    return not value
