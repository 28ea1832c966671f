"""The Services of an embedded tailnet: which there are, at which addresses, and which devices host them.

Owns the definitions and what hosts were asked. Whether a host is let: it has a tag, and one of those that the service
names. Which of several hosts gets the traffic is elected as for routes (`directory.py`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from ts_base.ip import Prefix, format_address
from ts_control.directory import Directory, DirectoryError, Enrolled
from ts_control.services import PATH, PREFIX, SERVICE_HOST, hosted_untrusted, label_of
from ts_control.wire import CapMap, DNSConfig, DNSRecord

QUESTION = base64.b64encode(b"GET %b HTTP/1.1\r\nHost: c2n\r\n\r\n" % PATH.encode()).decode()


@dataclass(frozen=True, slots=True)
class Service:
    addresses: tuple[bytes, bytes]
    tags: frozenset[str]  # whose devices may host it; empty for whoever has any tag


class ServedServices:
    """`follow` says whom to ask; `learn` takes the answer. Both leave what a device hosts in `Enrolled.hosted`."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.defined: dict[str, Service] = {}
        self._asked: dict[int, tuple[str, str]] = {}  # device to the hash it told, and the question about that
        self._told: dict[int, tuple[str, ...]] = {}  # device to what it wants to host

    def define(self, name: str, tags: Iterable[str]) -> tuple[bytes, bytes]:
        """There is such a service from now on; its addresses stay when it is said again."""
        try:
            label = label_of(name)
        except ValueError as problem:
            raise DirectoryError(str(problem)) from None
        if self._directory.by_label(label) is not None:
            raise DirectoryError(f"a device has the name {label}: a service needs one of its own")
        known = self.defined.get(name)
        addresses = known.addresses if known is not None else self._directory.new_addresses()
        self.defined[name] = Service(addresses, frozenset(tags))
        return addresses

    def is_news(self, device: Enrolled, *, is_stream: bool) -> bool:
        """Whether a device has to be asked what it hosts: it told another hash, or was gone when it was asked."""
        told = device.hostinfo.services_hash
        asked = self._asked.get(device.id)
        if not told:
            self._asked.pop(device.id, None)
            self._told.pop(device.id, None)
            return False
        return asked is None or asked[0] != told or (is_stream and bool(asked[1]))

    def note_asked(self, device: Enrolled, question: str) -> None:
        self._asked[device.id] = device.hostinfo.services_hash, question

    def learn(self, device: Enrolled, question: str, answer: bytes) -> bool:
        """Whether that was the answer to the newest question. BadPacket where it is none."""
        asked = self._asked.get(device.id)
        if asked is None or asked[1] != question:
            return False
        self._asked[device.id] = asked[0], ""
        self._told[device.id] = hosted_untrusted(answer)
        return True

    def settle(self, device: Enrolled) -> tuple[Prefix, ...] | None:
        """Let the device host what it told and may; the addresses that somebody else may get now, or None."""
        wanted = self._told.get(device.id, ()) if device.tags else ()
        hosted = {
            name: service.addresses
            for name, service in self.defined.items()
            if name in wanted and (not service.tags or service.tags & set(device.tags))
        }
        if hosted == device.hosted:
            return None
        before = device.hosted_routes
        device.hosted = hosted
        return tuple({*before, *device.hosted_routes})

    def forget(self, device_id: int) -> None:
        self._asked.pop(device_id, None)
        self._told.pop(device_id, None)

    # What is told

    def dns_with(self, dns: DNSConfig, domain: str) -> tuple[DNSRecord, ...]:
        """The records of a tailnet's DNS, and those of its services."""
        own = (
            DNSRecord(name=f"{name.removeprefix(PREFIX)}.{domain}", value=format_address(address))
            for name, service in self.defined.items()
            for address in service.addresses
        )
        return (*dns.extra_records, *own)


def host_capability(device: Enrolled) -> CapMap:
    """What a host is told of the addresses it answers at."""
    if not device.hosted:
        return {}
    return {
        SERVICE_HOST: [
            {name: [format_address(address) for address in at]} for name, at in sorted(device.hosted.items())
        ]
    }
