"""Many connections: no cross-talk, ports recycled, memory back where it was, little held while idle."""

from __future__ import annotations

import errno
import gc
import random
import tracemalloc

import pytest
from netsim import A, B, Net

from ts_netstack.ports import FIRST_PORT, LAST_PORT

IDLE_LIMIT = 6 * 1024


def test_two_thousand_connections_do_not_mix():
    net = Net(delay=0.001)
    listener = net.b.listen(80, backlog=4000)
    clients = []
    for _ in range(20):
        clients += [net.a.connect((B, 80), net.now) for _ in range(100)]
        net.run(0.005)
    servers = {server.remote[1]: server for server in iter(listener.accept, None)}
    assert len(servers) == 2000
    for index, client in enumerate(clients):
        client.write(b"%d says hello" % index)
    net.run(0.1)
    for index, client in enumerate(clients):
        server = servers[client.local[1]]
        assert server.read(100) == b"%d says hello" % index
        server.write(b"%d is heard" % index)
    net.run(0.1)
    assert all(client.read(100) == b"%d is heard" % index for index, client in enumerate(clients))
    assert not net.a.drops
    assert not net.b.drops


@pytest.mark.slow
def test_an_idle_connection_is_small():
    net = Net(delay=0.001)
    listener = net.b.listen(80, backlog=4000)
    net.a.connect((B, 80), net.now)
    net.run(0.1)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = []
        for _ in range(5):
            kept += [net.a.connect((B, 80), net.now) for _ in range(100)]
            net.run(0.01)
        kept += list(iter(listener.accept, None))
        for socket in kept:
            socket.write(b"x" * 100)
        net.run(1.0)
        for socket in kept:
            socket.read(1000)
        net.a.take_messages()
        net.b.take_messages()
        gc.collect()
        each = (tracemalloc.get_traced_memory()[0] - before) / 1000
    finally:
        tracemalloc.stop()
    assert each <= IDLE_LIMIT, each


def cycle(net: Net, listener: object, count: int) -> None:
    for index in range(count):
        client = net.a.connect((B, 80), net.now)
        net.run(0.002)
        server = listener.accept()  # type: ignore[attr-defined]
        client.write(b"%d" % index)
        client.close(net.now)
        net.run(0.002)
        assert server.read(100) == b"%d" % index
        server.close(net.now)
        net.run(0.002)
    net.a.take_messages()
    net.b.take_messages()


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_sequential_connections_leave_nothing_behind(count):
    net = Net(delay=0.0005)
    listener = net.b.listen(80)
    cycle(net, listener, 10)
    net.run(100)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        cycle(net, listener, count)
        net.run(100)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert net.a.connections == net.b.connections == 0
    assert not net.a.statistics().tcp.time_wait
    assert grown < 200_000


def test_ports_are_random_and_run_out_gracefully():
    net = Net()
    net.to_b.up = False
    ports = {net.a.connect((B, 80), 0.0).local[1] for _ in range(50)}
    assert len(ports) == 50
    assert min(ports) >= FIRST_PORT
    flows = net.a._tcp.flows
    some = next(iter(flows.values()))
    for port in range(FIRST_PORT, LAST_PORT + 1):
        flows.setdefault(B + A + (80).to_bytes(2, "big") + port.to_bytes(2, "big"), some)
    with pytest.raises(OSError) as problem:
        net.a.connect((B, 80), 0.0)
    assert problem.value.errno == errno.EADDRNOTAVAIL
    net.a.connect((B, 81), 0.0)


def test_a_port_in_time_wait_is_reused_when_no_other_is_left():
    net = Net(delay=0.0005)
    listener = net.b.listen(80)
    cycle(net, listener, 1)
    (key,) = net.a._tcp.time_wait
    waiting = int.from_bytes(key[-2:], "big")
    flows = net.a._tcp.flows
    for port in range(FIRST_PORT, LAST_PORT + 1):
        if port != waiting:
            flows[key[:-2] + port.to_bytes(2, "big")] = None
    net.now += 0.01
    client = net.a.connect((B, 80), net.now)
    assert client.local[1] == waiting
    net.run(0.01)
    assert client.is_established


def test_a_taken_local_port_is_address_in_use():
    net = Net()
    net.a.connect((B, 80), 0.0, local_port=20_000)
    with pytest.raises(OSError) as problem:
        net.a.connect((B, 80), 0.0, local_port=20_000)
    assert problem.value.errno == errno.EADDRINUSE
    net.a.connect((B, 81), 0.0, local_port=20_000)


def test_two_stacks_with_the_same_seed_speak_the_same_bytes():
    def conversation() -> list[bytes]:
        net = Net(seed=9, delay=0.01, loss=0.02)
        heard: list[bytes] = []
        receive = net.b.receive
        net.b.receive = lambda packets, now: (heard.extend(packets), receive(packets, now))  # type: ignore[method-assign]
        client, server = net.pair()
        net.transfer(client, server, random.Random(1).randbytes(100_000))
        return heard

    assert conversation() == conversation()
