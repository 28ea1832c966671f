"""Two stacks in memory: open, move bytes, close, in both families."""

from __future__ import annotations

import errno
import random

import pytest
from netsim import A, B, Net

from ts_netstack.tcp import ConnectionProblem
from ts_netstack.tcp_states import CLOSE_WAIT, CLOSED, ESTABLISHED, FIN_WAIT_2


@pytest.mark.parametrize("v6", [False, True])
def test_bytes_cross_both_ways(v6):
    net = Net(delay=0.01)
    client, server = net.pair(v6=v6)
    data = random.Random(5).randbytes(1_500_001)
    net.transfer(client, server, data)
    net.transfer(server, client, data)
    assert not net.a.drops
    assert not net.b.drops


def test_close_from_both_ends_leaves_only_time_wait():
    net = Net(delay=0.01)
    client, server = net.pair()
    assert client.state == server.state == ESTABLISHED
    client.write(b"last words")
    client.close(net.now)
    net.run(0.5)
    assert client.state == FIN_WAIT_2
    assert server.state == CLOSE_WAIT
    assert server.read(100) == b"last words"
    assert server.at_eof
    server.close(net.now)
    net.run(0.5)
    assert server.state == CLOSED
    assert server.error is None
    assert client.error is None
    assert net.a.connections == net.b.connections == 0
    net.run()
    assert net.a.next_timer() == float("inf")


def test_half_close_keeps_the_other_direction_open():
    net = Net(delay=0.01)
    client, server = net.pair()
    client.send_eof(net.now)
    net.run(0.2)
    assert server.at_eof
    data = random.Random(2).randbytes(300_000)
    net.transfer(server, client, data)
    server.send_eof(net.now)
    net.run(0.2)
    assert client.at_eof
    assert net.b.connections == 0


def test_connect_to_a_closed_port_is_refused():
    net = Net(delay=0.01)
    client = net.a.connect((B, 81), 0.0)
    net.run(1)
    assert client.error is ConnectionProblem.REFUSED
    assert client in net.a.take_messages()


def test_listening_twice_is_address_in_use():
    net = Net()
    listener = net.b.listen(80)
    for host in (None, B):
        with pytest.raises(OSError) as problem:
            net.b.listen(80, host)
        assert problem.value.errno == errno.EADDRINUSE
    listener.close()
    net.b.listen(80, B)
    with pytest.raises(OSError):
        net.b.listen(80, A)


def test_a_stack_talks_to_itself():
    net = Net()
    listener = net.a.listen(99)
    client = net.a.connect((A, 99), 0.0)
    assert net.a.transmit(0.0) == []
    server = listener.accept()
    assert server is not None
    net.transfer(client, server, random.Random(1).randbytes(700_000))
    assert net.carried == 0
