"""One interface of the kernel's, kept as a plan says: what is missing is added, what is not in the plan taken away.

Owns what has been given to the kernel and how often others took it away. Refuses to know why a plan is as it is.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tailscale.errors import TunFailed
from tailscale.kernel.netlink import Netlink, Rule
from tailscale.kernel.plan import DEFAULTS, LANDING, Plan
from tailscale.kernel.record import take_back
from ts_base.ip import Prefix

log = logging.getLogger("tailscale.tun")
DEVICE, OWN_STATUS, CAP_NET_ADMIN = Path("/dev/net/tun"), Path("/proc/self/status"), 12
UNFIT = (errno.EINVAL, errno.ERANGE, errno.EOPNOTSUPP)
IPV6_SWITCH = "/proc/sys/net/ipv6/conf/{}/disable_ipv6"


class InterfaceLost(TunFailed):
    """Somebody removed or renamed the interface."""


class Interface:
    """A TUN device as the kernel's routing sees it."""

    def __init__(self, netlink: Netlink, name: str, mtu: int, base: int) -> None:
        self.name, self.base = name, base
        self.restored = 0
        self.plan = Plan()
        self._netlink, self._mtu = netlink, mtu
        self._index = socket.if_nametoindex(name)

    @property
    def has_ipv6(self) -> bool:
        """Whether this machine lets the interface have IPv6 addresses."""
        try:
            return Path(IPV6_SWITCH.format(self.name)).read_text().strip() == "0"
        except OSError:
            return False

    def follow(self, plan: Plan) -> bool:
        """Make it so. What a plan already had, and is gone, was taken away by somebody else: then True."""
        lost = self._follow(plan)
        if lost:
            self.restored += lost
            log.warning("%s: %d of our addresses, routes and rules had been taken away; they are back", self.name, lost)
        return bool(lost)

    def _follow(self, plan: Plan) -> int:
        before, self.plan = self.plan, plan
        netlink, index, lost = self._netlink, self._index, 0
        refused: dict[Prefix, str] = {}
        if not self._is_link_right():
            netlink.bring_up(index, self._mtu)
        present = netlink.addresses(index)
        for address in plan.own - present:
            netlink.add_address(index, address)
            lost += address in before.own
        routes, wanted = netlink.routes(self.base), {(prefix, index) for prefix in plan.routes}
        for prefix, _ in sorted(wanted - routes, key=lambda one: one[0][1]):
            try:
                netlink.add_route(self.base, prefix, index)
            except OSError as error:  # a peer's route that the kernel does not like must not cost the others
                if error.errno not in UNFIT or prefix in DEFAULTS:
                    raise
                refused[prefix] = "the kernel refuses it"
                continue
            lost += prefix in before.routes
        rules = {rule for rule in netlink.rules() if 0 <= rule.priority - self.base <= LANDING}
        for rule in _in_order(plan.rules - rules):
            netlink.add_rule(rule)
            lost += rule in before.rules
        for rule in reversed(_in_order(rules - plan.rules)):
            netlink.delete_rule(rule)
        for prefix, at in routes - wanted:
            netlink.delete_route(self.base, prefix, at)
        for address in present - plan.own:
            netlink.delete_address(index, address)
        if refused:
            self.plan = replace(plan, routes=plan.routes - refused.keys(), refused={**plan.refused, **refused})
        return lost

    def _is_link_right(self) -> bool:
        """Whether it is up, with its MTU. InterfaceLost where it is not there any more, or is called otherwise."""
        link = self._netlink.link(self._index)
        if link is None:
            raise InterfaceLost(f"somebody removed the interface {self.name}")
        name = socket.if_indextoname(self._index)
        if name != self.name:
            raise InterfaceLost(f"somebody renamed the interface {self.name} to {name!a}")
        return link.is_up and link.mtu == self._mtu

    def uplink_to(self, destination: bytes, udp_port: int) -> str:
        """By which interface that address is reached beside the tunnel; "" where none has to be named."""
        index = self._netlink.uplink_to(destination, udp_port)
        if index in (0, self._index):
            return ""
        try:
            name = socket.if_indextoname(index)
        except OSError:
            return ""
        return "" if name == "lo" else name

    def undo(self) -> None:
        """Take back all of it. The interface too: a child of this process may have its descriptor still."""
        self.plan = Plan()
        try:
            take_back(self._netlink, self.base)
        finally:
            self._netlink.delete_link(self._index)


def what_is_missing() -> str:
    """What this process would need to be given for a TUN device; "" where it has it."""
    wanted = []
    if not DEVICE.exists():
        wanted.append(f"{DEVICE} (modprobe tun; in a container --device {DEVICE})")
    lines = [line.split() for line in OWN_STATUS.read_text().splitlines() if line.startswith("CapEff:")]
    if not any(int(words[1], 16) >> CAP_NET_ADMIN & 1 for words in lines):  # root may lack it, in a container
        wanted.append("root or CAP_NET_ADMIN (in a container --cap-add NET_ADMIN)")
    return " and ".join(wanted)


def machine_has_ipv6() -> bool:
    """Whether its kernel speaks IPv6 at all."""
    return Path("/proc/net/if_inet6").exists()


def _in_order(rules: Iterable[Rule]) -> list[Rule]:
    """As they are to be added: where others land, then the exceptions, then what leads into the tunnel."""
    return sorted(rules, key=lambda rule: (rule.priority % 10 != LANDING, rule.priority, rule.family))


def sentence_of(error: OSError) -> str:
    """What to set where the kernel refused."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return "run it as root, or give it CAP_NET_ADMIN (in a container: --cap-add NET_ADMIN --device /dev/net/tun)"
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return "there is no /dev/net/tun: load the module (modprobe tun), or hand it in (--device /dev/net/tun)"
    if error.errno == errno.EBUSY:
        return "choose another name=, or remove that interface (ip link del NAME)"
    return ""
