"""A stack that forwards for others, under hostile packets from three peers: knocks, floods, replies, admissions, pings.

Nothing may raise, nobody may have more than a share, what was taken is given back, and what is sent parses.
"""

from __future__ import annotations

import random
from contextlib import suppress

from ts_base.ip_headers import ip_packet
from ts_netstack import icmp
from ts_netstack.forwarder import Echo, ForwardedFlow, ForwarderLimits, Knock
from ts_netstack.stack import Stack
from ts_netstack.udp_demux import read_datagram_untrusted
from ts_netstack.wire import Unroutable, parse_packet_untrusted, tcp_packet, udp_payload

US = bytes([100, 64, 0, 1])
PEERS = [bytes([100, 64, 0, 2 + number]) for number in range(3)]
LIMITS = ForwarderLimits(held_each=64, admitted_each=64, flows_each=64)
STEP = 10
STEPS_LIMIT = 80
QUIET = 400.0  # after it nothing may be held, opening or idle


class Tens:
    """10.0.0.0/8, and addresses that no forwarder may believe."""

    def covers(self, address: bytes) -> bool:
        return address[:1] == b"\x0a" or address[:1] == b"\x7f"


def fuzz_one(data: bytes) -> None:
    stack = Stack(entropy=random.Random(1).randbytes)
    stack.set_addresses([US])
    stack.forwarder.set_routes(Tens())
    stack.forwarder.set_limits(LIMITS)
    now = 1.0
    for at in range(0, min(len(data), STEP * STEPS_LIMIT), STEP):
        step = data[at : at + STEP].ljust(STEP, b"\0")
        now += step[1] / 50
        _act(stack, step, data[at : at + 64], now)
        _look(stack, step, now)
    for _ in range(8):
        now += QUIET / 8
        stack.handle_timer(now)
        stack.transmit(now)
    assert (stack.statistics().forwarder.held, stack.statistics().forwarder.flows) == (0, 0)
    stack.abort_all(now)
    stack.transmit(now)
    assert stack.statistics().forwarder.admitted == 0


def _act(stack: Stack, step: bytes, raw: bytes, now: float) -> None:
    number = step[2] % 3
    source, destination = PEERS[number], bytes([127 if step[3] == 255 else 10, 0, 0, step[3] & 7])
    origin = (2 + number, step[4] < 250)
    count = 1 + (step[4] & 63 if step[0] & 128 else 0)
    packets = []
    for index in range(count):
        ends = ((source, 1000 + step[5] % 4 + index), (destination, 80))
        if step[0] % 4 == 0:
            packets.append(raw)
        elif step[0] % 4 == 1:
            packets.append(ip_packet(source, destination, 17, udp_payload(*ends, raw)))
            packets.append(icmp.echo_request(source, destination, step[7] + index, raw))
        else:
            flags = 2 if step[6] < 150 else step[6]
            packets.append(
                tcp_packet(*ends, step[7], int.from_bytes(step[7:9], "big"), flags, 100, b"", raw[: step[9]])
            )
    stack.receive([(origin, packets)], now)
    for packet in packets:
        with suppress(Unroutable):
            read_datagram_untrusted(parse_packet_untrusted(packet), True)


def _look(stack: Stack, step: bytes, now: float) -> None:
    for message in stack.forwarder.take_news():
        if isinstance(message, Knock):
            assert message.local[0][0] == 10
            answer = step[8] % 4
            if answer == 0:
                stack.forwarder.refuse(message, now, is_reachable=bool(step[9] & 1))
            elif answer == 1 and (connection := stack.forwarder.admit(message, now)) is not None:
                connection.close(now)
        elif isinstance(message, ForwardedFlow) and not message.is_closed:
            while (datagram := message.receive()) is not None:
                message.reply(datagram[0], now)
            if step[8] % 4 == 3:
                stack.forwarder.report_refusal(message, now)
        elif isinstance(message, Echo):
            stack.forwarder.settle_echo(message, now, is_there=bool(step[8] & 1))
    if stack.next_timer() <= now:
        stack.handle_timer(now)
    for (destination, _), packets in stack.transmit(now):
        for packet in packets:
            assert parse_packet_untrusted(packet, True).destination == destination
    stack.forwarder.take_gone()
    counts = stack.statistics().forwarder
    assert counts.echoes == 0
    assert counts.held <= 3 * LIMITS.held_each
    assert counts.admitted <= 3 * LIMITS.admitted_each
    assert counts.flows <= 3 * LIMITS.flows_each


def seeds() -> list[bytes]:
    dice = random.Random(5)
    syn, flood = bytes([2, 1, 0, 1, 0, 0, 2, 5, 1, 0]), bytes([130, 1, 1, 2, 63, 0, 2, 5, 3, 0])
    datagram, storm = bytes([1, 9, 2, 3, 0, 0, 0, 0, 0, 0]), bytes([129, 255, 2, 3, 63, 0, 0, 0, 0, 0])
    return [
        bytes(STEP * 3),
        syn + bytes([2, 1, 0, 1, 0, 0, 16, 6, 1, 0]) + datagram,
        flood * 3 + datagram + storm * 5,
        dice.randbytes(STEP * 40),
    ]
