"""Our Device behind the command line and the line protocol of `tsnetpeer`, so that the rig drives both alike.

It runs where a test needs a process of its own: in a network namespace, or beside another Device.
"""

from __future__ import annotations

import argparse
import base64
import resource
import sys
import time
from functools import partial

import trio

import tailscale
from tests.interop.line_protocol import Json, arguments, obey, say, say_up
from tests.interop.ours import converse, serve
from tests.interop.pattern import pattern


async def answer(device: tailscale.Device, q: Json) -> Json:
    """One command, as tsnetpeer answers it."""
    host, port = q.get("host", ""), q.get("port", 0)
    match q["cmd"]:
        case "dial":
            began = trio.current_time()
            stream = await device.tcp_connect(host, port)
            connected = trio.current_time()
            data = base64.b64decode(q["data"]) if q.get("data") else pattern(q.get("bytes", 0))
            got = await converse(stream, data, end=q.get("end", ""), read=q.get("read", 0))
            return {
                "connect_ms": (connected - began) * 1000,
                "first_byte_ms": (trio.current_time() - began) * 1000,
                "sent": len(data),
                "received": got.received,
                "sha256": got.sha256,
                "head": base64.b64encode(got.head).decode(),
            }
        case "udp":
            data, answered, same = pattern(q.get("bytes", 0)), 0, 0
            async with await device.udp() as socket:
                for _ in range(q.get("count", 1)):
                    await socket.send_to(data, (host, port))
                    with trio.move_on_after(1):
                        back, _source = await socket.receive_from()
                        answered += 1
                        same += back == data
            return {"answered": answered, "same": same}
        case "ping":
            pong = await device.ping(host, q.get("kind", "disco").lower(), q.get("size", 0))
            endpoint = pong.path.where if pong.path.kind == "direct" else ""
            return {"pings": [{"IP": host, "LatencySeconds": pong.latency, "Endpoint": endpoint}]}
        case "status":
            return {"status": _status(device)}
        case "usage":
            used = resource.getrusage(resource.RUSAGE_SELF)
            return {"cpu_s": used.ru_utime + used.ru_stime, "rss_kb": used.ru_maxrss}
        case "set":
            await device.set(**{name: value for name, value in q.items() if name.startswith("advertise_")})
            return {}
        case "forwarding":
            return {"forwarding": device.forwarding.to_dict()}
        case "logout":
            await device.logout()
            return {}
    raise ValueError(f"unknown command {q['cmd']!r}")


def _status(device: tailscale.Device) -> Json:
    peers = {}
    for peer in device.status().peers:
        direct = peer.path.kind == "direct"
        peers[peer.node.stable_id] = {
            "HostName": peer.node.hostname,
            "TailscaleIPs": list(peer.node.addresses),
            "Online": peer.node.online,
            "CurAddr": peer.path.where if direct else "",
            "Relay": "" if direct else peer.path.where,
            "RxBytes": peer.bytes_received,
            "TxBytes": peer.bytes_sent,
        }
    return {"Peer": peers}


async def run(options: argparse.Namespace) -> None:
    began = time.monotonic()
    device = tailscale.Device(
        options.hostname,
        control_url=options.control,
        auth_key=options.authkey,
        ephemeral=options.ephemeral,
        udp_port=options.port,
        on_login_url=lambda url: say({"event": "login", "url": url}),
        ready_timeout=options.timeout,
    )
    try:
        await device.__aenter__()
    except tailscale.TailscaleError as e:
        say({"event": "failed", "error": f"{type(e).__name__}: {e}"})
        return
    try:
        async with trio.open_nursery() as nursery:
            await serve(device, nursery)
            say_up(device, time.monotonic() - began)
            await obey(partial(answer, device))
            nursery.cancel_scope.cancel()
    finally:
        await device.__aexit__(None, None, None)


def main() -> None:
    options = arguments().parse_args()
    if options.verbose:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    trio.run(run, options)


if __name__ == "__main__":
    main()
