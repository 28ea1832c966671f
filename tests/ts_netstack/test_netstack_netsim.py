"""Throughput over the simulated network, kept as a snapshot: every change of behaviour shows here as a diff.

To accept a new table: `python tests/ts_netstack/test_netstack_netsim.py`. Hashes of what arrived are always compared.
"""

from __future__ import annotations

import json
import random
from pathlib import Path as File

import pytest
from netsim import Net

from ts_netstack.arrivals import USUAL

SNAPSHOT = File(__file__).with_name("netsim_table.json")
MIB = 1 << 20

ROWS: dict[str, dict[str, float]] = {
    "1 ms": {"delay": 0.0005},
    "20 ms": {"delay": 0.01},
    "100 ms": {"delay": 0.05},
    "200 ms": {"delay": 0.1},
    "1 % loss, 20 ms": {"delay": 0.01, "loss": 0.01},
    "1 % loss, 40 ms": {"delay": 0.02, "loss": 0.01},
    "1 % loss, 200 ms": {"delay": 0.1, "loss": 0.01},
    "3 % loss, 20 ms": {"delay": 0.01, "loss": 0.03},
    "10 % loss, 20 ms": {"delay": 0.01, "loss": 0.1},
    "10 % loss, 1 ms": {"delay": 0.0005, "loss": 0.1},
    "25 % reorder, 20 ms": {"delay": 0.01, "reorder": 0.25},
    "25 % reorder, 200 ms": {"delay": 0.1, "reorder": 0.25},
    "5 % duplicates, 20 ms": {"delay": 0.01, "duplicate": 0.05},
    "0.1 % corruption, 20 ms": {"delay": 0.01, "corrupt": 0.001},
    "all of it, 40 ms": {"delay": 0.02, "loss": 0.01, "reorder": 0.25, "duplicate": 0.05, "corrupt": 0.001},
    "10 Mbit/s, 40 ms, short queue": {"delay": 0.02, "rate": 10e6, "queue": 20_000},
}


def megabits(row: dict[str, float]) -> float:
    """Goodput of one MiB; both directions suffer alike."""
    net = Net(seed=5, verify=True, **row)
    client, server = net.pair()
    return round(MIB * 8 / 1e6 / net.transfer(client, server, random.Random(6).randbytes(MIB)), 2)


@pytest.mark.parametrize("name", ROWS)
def test_throughput_is_what_it_was(name):
    assert megabits(ROWS[name]) == json.loads(SNAPSHOT.read_text())[name]


@pytest.mark.slow
def test_a_long_clean_path_is_filled():
    net = Net(delay=0.05, rate=50e6, queue=400_000)
    client, server = net.pair()
    net.transfer(client, server, bytes(8 * MIB))
    seconds = net.transfer(client, server, random.Random(2).randbytes(10 * MIB))
    assert 10 * MIB * 8 / seconds >= 0.8 * 50e6


def test_slight_reordering_is_no_loss():
    net = Net(delay=0.033)
    client, server = net.pair()
    net.transfer(client, server, bytes(2 * MIB))
    net.to_b.reorder = 0.05
    window = client.statistics().congestion_window
    net.transfer(client, server, bytes(4 * MIB))
    assert client.statistics().congestion_window > 0.6 * window


def test_a_slower_path_causes_no_storm():
    net = Net(delay=0.0005, rate=100e6)
    client, server = net.pair()
    net.transfer(client, server, bytes(MIB))
    net.to_a.delay = net.to_b.delay = 0.04
    before = net.carried
    net.transfer(client, server, bytes(MIB))
    assert net.carried - before < 1.6 * MIB / 1228


def test_a_faster_path_overtakes_without_collapse():
    net = Net(delay=0.04, rate=100e6)
    client, server = net.pair()
    net.transfer(client, server, bytes(2 * MIB))
    window = client.statistics().congestion_window
    net.to_a.delay = net.to_b.delay = 0.0005
    seconds = net.transfer(client, server, bytes(MIB))
    assert client.statistics().congestion_window >= 0.49 * window
    assert seconds < 1.0


def test_an_outage_is_survived_and_soon_forgotten():
    net = Net(delay=0.02, rate=20e6, queue=100_000)
    client, server = net.pair()
    net.transfer(client, server, bytes(MIB))
    data = random.Random(3).randbytes(MIB)
    written = client.write(data)
    net.run(0.02)
    net.to_a.up = net.to_b.up = False
    net.run(3.0)
    net.to_a.up = net.to_b.up = True
    resumed = net.now
    got = b""
    while len(got) < len(data):
        if written < len(data):
            written += client.write(data[written:])
        assert net.step()
        got += server.read(MIB)
    assert got == data
    assert net.now - resumed < 5.0
    assert client.error is None


@pytest.mark.parametrize("seed", range(8))
def test_random_weather_never_corrupts_or_stalls(seed):
    dice = random.Random(seed)
    net = Net(
        seed=seed,
        verify=True,
        delay=dice.uniform(0.0005, 0.1),
        loss=dice.choice([0, 0.01, 0.05]),
        reorder=dice.choice([0, 0.25]),
        duplicate=dice.choice([0, 0.05]),
        corrupt=dice.choice([0, 0.005]),
        rate=dice.choice([5e6, 50e6, 1e9]),
        queue=50_000,
    )
    client, server = net.pair(v6=bool(seed & 1))
    for sender, receiver in ((client, server), (server, client)):
        net.transfer(sender, receiver, dice.randbytes(200_000))
    client.close(net.now)
    server.close(net.now)
    net.run(400)
    assert net.a.connections == net.b.connections == 0


def test_sequence_numbers_wrap_mid_transfer():
    net = Net(delay=0.01)
    listener = net.b.listen(80)
    begin = 0xFFFFFFFF - 300_000
    net.wait_until_sequence_numbers_are_near(begin, 80, local_port=5555)
    client = net.a.connect((bytes([100, 64, 0, 2]), 80), net.now, local_port=5555)
    ((_, (syn,)),) = net.a.transmit(net.now)
    assert 0 <= int.from_bytes(syn[24:28], "big") - begin < 1000
    net.b.receive([(USUAL, [syn])], net.now)
    net.run(0.1)
    server = listener.accept()
    net.transfer(client, server, random.Random(1).randbytes(MIB))
    assert client.statistics().acknowledged > 300_001  # SND.UNA has passed zero


def test_a_gigabit_at_a_hundred_milliseconds_fits_the_buffers():
    net = Net(delay=0.05)
    client, server = net.pair()
    net.transfer(client, server, bytes(40 * MIB))
    assert server.statistics().receive_window >= 12_500_000
    assert client.statistics().largest_peer_window >= 12_500_000


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps({name: megabits(row) for name, row in ROWS.items()}, indent=1) + "\n")
