"""What we tell control about ourselves: the machine, the wishes, the network we found.

Pure translation into the wire types; `control_actor.py` decides when it is sent.
"""

from __future__ import annotations

import platform
import sys
from functools import cache

from tailscale._config import Preferences
from tailscale.runtime.messages import NetInfoChanged, ServicesOffered
from ts_control.services import services_hash
from ts_control.wire import Hostinfo, NetInfo

IPN_VERSION = "0.1.0-pytailscale"
SYSTEMS = {"linux": "linux", "darwin": "macOS", "win32": "windows"}


@cache
def _machine() -> tuple[str, str, str]:
    return SYSTEMS.get(sys.platform, sys.platform), platform.release(), platform.machine()


def build_hostinfo(
    preferences: Preferences, net_info: NetInfoChanged | None, home_region: int, offered: ServicesOffered
) -> Hostinfo:
    """`home_region` is last run's, and counts until the network has been looked at."""
    system, release, machine = _machine()
    offers = tuple(offered.offers.values())
    return Hostinfo(
        ipn_version=IPN_VERSION,
        os=system,
        os_version=release,
        machine=machine,
        hostname=preferences.hostname,
        shields_up=preferences.shields_up,
        wire_ingress=not offered.is_published and any(offer.ingress is False for offer in offers),
        ingress_enabled=offered.is_published,
        routable_ips=tuple(sorted(set(preferences.offered_routes).union(*(offer.routes for offer in offers)))),
        request_tags=tuple(sorted(set(preferences.tags))),
        services=offered.services,
        services_hash=services_hash(offered.hosted),
        ssh_host_keys=tuple(dict.fromkeys(key for offer in offers for key in offer.ssh_host_keys)),
        net_info=build_net_info(net_info, home_region),
        no_logs_no_support=True,
        userspace=True,
        userspace_router=True,
    )


def build_net_info(found: NetInfoChanged | None, home_region: int) -> NetInfo | None:
    if found is None:
        return NetInfo(preferred_derp=home_region) if home_region else None
    return NetInfo(
        mapping_varies_by_dest_ip=found.mapping_varies_by_destination,
        working_ipv6=found.working_ipv6,
        working_udp=found.working_udp,
        have_port_map=bool(found.port_mapping),
        upnp=True if found.port_mapping == "upnp" else None,
        pmp=True if found.port_mapping == "pmp" else None,
        pcp=True if found.port_mapping == "pcp" else None,
        preferred_derp=found.home_region or home_region,
        derp_latency=dict(found.latencies),
    )
