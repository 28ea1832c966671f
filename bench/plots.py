"""How cost grows: with peers, connections, loss and latency. Writes docs/plots/*.svg and prints the figures.

Run: python -m bench.plots. Peers and connections are CPU time of this machine; loss and latency run in virtual time
over the network of tests/ts_netstack/netsim.py, so they are the same everywhere.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from bench import inside, netstack, tables
from ts_control.gojson import encode_json
from ts_control.map_reader import decode_map_response_steps
from ts_control.netmap import NetMap
from ts_control.wire import MapResponse, PeerChange
from ts_dataplane.filter import Rule
from ts_netstack.arrivals import USUAL

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "plots"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 240, 64, 44, 34
COLOURS = ("#2563eb", "#dc2626", "#059669")
Points = list[tuple[float, float]]
MIB = 1 << 20


def nice(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}" if value == int(value) else f"{value:.2g}"


def svg(title: str, across: str, up: str, lines: dict[str, Points]) -> str:
    """A line chart; the ticks across are the points themselves, evenly spaced."""
    places = [x for x, _ in next(iter(lines.values()))]
    top = max(y for points in lines.values() for _, y in points) * 1.1
    right, floor = WIDTH - 12, HEIGHT - BOTTOM

    def x_of(index: int) -> float:
        return LEFT + (right - LEFT) * index / (len(places) - 1)

    def y_of(value: float) -> float:
        return floor - (floor - TOP) * value / top

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="16" font-size="13">{title}</text>',
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{across}</text>',
        f'<text transform="translate(14 {(TOP + floor) / 2}) rotate(-90)" text-anchor="middle">{up}</text>',
    ]
    for step in range(5):
        value = top * step / 4
        y = y_of(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{nice(value)}</text>')
    for index, place in enumerate(places):
        parts.append(f'<text x="{x_of(index):.1f}" y="{floor + 15}" text-anchor="middle">{nice(place)}</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number]
        path = "L".join(f"{x_of(index):.1f} {y_of(y):.1f}" for index, (_, y) in enumerate(points))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{right}" y="{TOP - 4 + 13 * number}" text-anchor="end" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def with_peers() -> dict[str, Points]:
    """Milliseconds of CPU."""
    lines: dict[str, Points] = {"read the map": [], "compile routes and filter": [], "100 deltas": []}
    for count in (10, 100, 1000, 3000, 10_000):
        data = encode_json(
            MapResponse(node=inside.rich_node(1), peers=tuple(inside.rich_node(n) for n in range(2, count + 2)))
        )
        began = time.process_time()
        steps = decode_map_response_steps(data)
        netmap = NetMap.empty()
        while True:
            try:
                next(steps)
            except StopIteration as done:
                netmap = netmap.apply(done.value, 1.8e9)
                break
        lines["read the map"].append((count, (time.process_time() - began) * 1e3))
        peers = tables.peers(count)
        began = time.process_time()
        tables.compile_in_steps(peers, [Rule(("*",), (("*", 0, 65535),))])
        lines["compile routes and filter"].append((count, (time.process_time() - began) * 1e3))
        began = time.process_time()
        for n in range(100):
            netmap = netmap.apply(
                MapResponse(peers_changed_patch=(PeerChange(node_id=2 + n % count, online=True),)), 1.8e9
            )
        lines["100 deltas"].append((count, (time.process_time() - began) * 1e3))
    return lines


def with_connections() -> dict[str, Points]:
    """Microseconds of CPU for a 64-byte echo on one connection, through both stacks, beside so many idle ones."""
    points: Points = []
    for count in (1, 10, 100, 1000, 5000):
        a, b, client, server = netstack.connected(4)
        listener = b.listen(81)
        held: list[object] = []
        for number in range(count - 1):
            now = 1.0 + number * 1e-3
            held.append(a.connect((netstack.ADDRESSES[4][1], 81), now))
            for _ in range(2):
                b.receive([(USUAL, [packet for _, run in a.transmit(now) for packet in run])], now)
                a.receive([(USUAL, [packet for _, run in b.transmit(now) for packet in run])], now)
            held.append(listener.accept())
        best = float("inf")
        for attempt in range(5):
            began = time.process_time()
            for number in range(200):
                now = 20.0 + attempt + number * 1e-3
                for sender, receiver, ours, theirs in ((a, b, client, server), (b, a, server, client)):
                    ours.write(bytes(64))
                    receiver.receive([(USUAL, [packet for _, run in sender.transmit(now) for packet in run])], now)
                    theirs.read(64)
                    receiver.next_timer()
            best = min(best, (time.process_time() - began) / 200 * 1e6)
        points.append((count, best))
    return {"echo of 64 bytes": points}


def goodput(size: int, **path: float) -> float:
    """Mbit/s of virtual time over a simulated path."""
    sys.path.insert(0, str(ROOT / "tests" / "ts_netstack"))
    from netsim import Net  # type: ignore[import-not-found]

    net = Net(seed=5, **path)
    client, server = net.pair()
    return size * 8 / 1e6 / float(net.transfer(client, server, random.Random(1).randbytes(size)))


def with_loss() -> dict[str, Points]:
    lines: dict[str, Points] = {}
    for trip in (20, 80):
        lines[f"{trip} ms"] = [
            (loss, goodput(8 * MIB, delay=trip / 2e3, rate=100e6, queue=400_000, loss=loss / 100))
            for loss in (0, 0.01, 0.1, 0.5, 1, 3)
        ]
    return lines


def with_latency() -> dict[str, Points]:
    """What of a 200 Mbit/s line the first 8 and the first 64 MiB of a connection get, in per cent."""
    lines: dict[str, Points] = {}
    for size in (8, 64):
        lines[f"first {size} MiB"] = [
            (trip, goodput(size * MIB, delay=trip / 2e3, rate=200e6, queue=2_500_000) / 200 * 100)
            for trip in (1, 10, 20, 40, 80, 160)
        ]
    return lines


PLOTS = {
    "peers": ("CPU to take in a tailnet", "peers", "ms", with_peers),
    "connections": ("A round trip beside idle connections (TCP alone)", "open connections", "us", with_connections),
    "loss": ("One stream on a 100 Mbit/s line with loss", "% of packets lost", "Mbit/s", with_loss),
    "latency": ("One stream on a clean 200 Mbit/s line", "round trip, ms", "% of the line", with_latency),
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (title, across, up, measure) in PLOTS.items():
        lines = measure()
        (FOLDER / f"{name}.svg").write_text(svg(title, across, up, lines))
        for line, points in lines.items():
            print(f"{name:12} {line:28}", "  ".join(f"{x:g}: {y:.3g}" for x, y in points), up, flush=True)


if __name__ == "__main__":
    main()
