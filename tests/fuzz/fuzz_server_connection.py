"""Bytes from a stranger to the embedded coordination server: before, and inside, a good Noise session."""

from __future__ import annotations

import random

from ts_base.keys import MachinePrivate
from ts_control.handshake import Initiator
from ts_control.http2 import Http2Connection
from ts_control.record import ClientTransport
from ts_control.server import ControlServer
from ts_control.server_connection import ServedConnection

_CLIENT = MachinePrivate.generate(bytes(range(32)))


def fuzz_one(data: bytes) -> None:
    server = ControlServer(entropy=random.Random(1).randbytes, wall_clock=lambda: 1_800_000_000.0)
    ServedConnection(server, data, entropy=random.Random(2).randbytes).transmit(0.0)
    initiator = Initiator(_CLIENT, server.key, 131, entropy=random.Random(3).randbytes)
    connection = ServedConnection(server, initiator.initiation, entropy=random.Random(4).randbytes)
    transport = ClientTransport(initiator)
    transport.receive_untrusted(connection.transmit(0.0))
    connection.receive(transport.write(data), 0.0)
    connection.transmit(0.0)
    connection.close(1.0)


def seeds() -> list[bytes]:
    client = Http2Connection(client=True)
    client.request("POST", "c", "/machine/register", [], b'{"Version":131,"Auth":{"AuthKey":"k"}}')
    client.request("POST", "c", "/machine/map", [], b'{"Version":131,"Stream":true}')
    return [client.transmit(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes(101)]
