"""UPnP's texts: the search on the network, the description of a gateway, the call that opens a port.

Owns formats only, with just as much XML as is needed: documents come from devices of any quality, so tags are looked
for, not parsed. UPnP InternetGatewayDevice 1 and 2; who is asked when is `portmap.py` and the shell.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from ts_base.errors import BadPacket

SSDP_PORT = 1900
SSDP_GROUP = ("239.255.255.250", SSDP_PORT)
MAX_DOCUMENT = 256 * 1024
DESCRIPTION = "tailscale-portmap"
LEASE = 7200
ONLY_PERMANENT = frozenset({402, 725})  # routers that know no leases answer with one of these

SEARCH = (
    b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\n'
    b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nMX: 2\r\n\r\n"
)
SERVICES = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)

_LOCATION = re.compile(rb"^location:[ \t]*(\S{1,512})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_SERVICE = re.compile(r"<service>(.{0,4096}?)</service>", re.DOTALL)
_ERROR = re.compile(r"<errorCode>\s*(\d{1,5})\s*</errorCode>")


class ControlPoint(NamedTuple):
    """Where a gateway takes calls, and which dialect it speaks there."""

    url: str
    service: str


def decode_search_answer_untrusted(datagram: bytes, gateway: str) -> str:
    """The address of the description. It must be on the gateway that answered: nobody may send us elsewhere."""
    if not datagram.startswith(b"HTTP/1."):
        raise BadPacket("not an SSDP answer")
    match = _LOCATION.search(datagram[:4096])
    if match is None:
        raise BadPacket("SSDP answer without a location")
    try:
        location = match[1].decode("ascii")
        parts = urlsplit(location)
        is_ours = parts.scheme == "http" and parts.hostname == gateway and parts.port != 0
    except ValueError:
        raise BadPacket("SSDP answer with a bad location") from None
    if not is_ours:
        raise BadPacket("SSDP answer points somewhere else")
    return location


def decode_description_untrusted(document: bytes, location: str) -> ControlPoint:
    """The best WAN connection service a gateway describes."""
    text = document[:MAX_DOCUMENT].decode("utf-8", "replace")
    found: dict[str, str] = {}
    for block in _SERVICE.finditer(text):
        kind, path = tag(block[1], "serviceType"), tag(block[1], "controlURL")
        if kind in SERVICES and path:
            found.setdefault(kind, path)
    for service in SERVICES:
        if service in found:
            try:
                url = urljoin(location, found[service])
                if urlsplit(url).hostname == urlsplit(location).hostname:
                    return ControlPoint(url, service)
            except ValueError:
                continue
    raise BadPacket("no WAN connection in the gateway's description")


def tag(text: str, name: str) -> str:
    """The text inside the first `name` element, or nothing."""
    match = re.search(rf"<(?:\w+:)?{name}(?:\s[^>]{{0,256}})?>\s*([^<]{{0,1024}}?)\s*</", text)
    return match[1] if match else ""


def encode_call(service: str, action: str, arguments: dict[str, str]) -> tuple[dict[str, str], bytes]:
    """Headers and body of one SOAP call."""
    fields = "".join(f"<{name}>{value}</{name}>" for name, value in arguments.items())
    body = (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{service}">{fields}</u:{action}></s:Body></s:Envelope>'
    )
    return {"Content-Type": 'text/xml; charset="utf-8"', "SOAPAction": f'"{service}#{action}"'}, body.encode()


def mapping_arguments(internal: int, external: int, client: str, lease: int = LEASE) -> dict[str, str]:
    return {
        "NewRemoteHost": "",
        "NewExternalPort": str(external),
        "NewProtocol": "UDP",
        "NewInternalPort": str(internal),
        "NewInternalClient": client,
        "NewEnabled": "1",
        "NewPortMappingDescription": DESCRIPTION,
        "NewLeaseDuration": str(lease),
    }


def decode_reply_untrusted(document: bytes, name: str) -> str:
    """One value out of a SOAP reply; BadPacket where it is not there."""
    value = tag(document[:MAX_DOCUMENT].decode("utf-8", "replace"), name)
    if not value:
        raise BadPacket(f"SOAP reply without {name}")
    return value


def error_code(document: bytes) -> int:
    """The UPnP error in a SOAP fault, 0 when there is none."""
    match = _ERROR.search(document[:MAX_DOCUMENT].decode("utf-8", "replace"))
    return int(match[1]) if match else 0
