"""The probe plan, what ends it, and what makes a report."""

from __future__ import annotations

import math
import random

import pytest

from ts_dataplane import stun
from ts_dataplane.endpoints import LOCAL, PORT_MAPPED, STUN, STUN_WITH_LOCAL_PORT, EndpointList
from ts_dataplane.netcheck import Netcheck, RegionTargets, Report


class Lab:
    """STUN servers at some distance, each seeing us where `sees` says."""

    def __init__(self, delays, sees=None):
        self.delays = delays
        self.sees = sees or (lambda target: ("203.0.113.5", 41641) if ":" not in target[0] else ("2001:db8::5", 41641))
        self.check = Netcheck(random.Random(1).randbytes)
        self.sent: list[tuple[float, tuple]] = []

    def run(self, start: float = 0.0, **options) -> Report:
        regions = [
            RegionTargets(number, ((f"192.0.2.{number}", 3478),), ((f"2001:db8::{number}", 3478),) if six else ())
            for number, six in {key: (key, 6) in self.delays for key in self.delays if isinstance(key, int)}.items()
        ]
        check, now, coming = self.check, start, []
        check.begin(regions, now, **options)
        while True:
            for target, datagrams in check.transmit(now):
                for datagram in datagrams:
                    self.sent.append((now, target))
                    number = int(target[0].rpartition("." if "." in target[0] else ":")[2])
                    delay = self.delays.get((number, 6) if ":" in target[0] else number)
                    if delay is not None:
                        answer = stun.encode_response(stun.decode_request_untrusted(datagram), self.sees(target))
                        coming.append((now + delay, answer, target))
            report = check.take_report()
            if report is not None:
                assert check.next_timer() == math.inf
                return report
            coming.sort(key=lambda item: item[0])
            now = min(check.next_timer(), coming[0][0] if coming else math.inf)
            if coming and coming[0][0] <= now:
                _, answer, target = coming.pop(0)
                check.receive([(answer, target)], now)
            else:
                check.handle_timer(now)


def test_full_check_measures_every_region():
    report = Lab({1: 0.02, 2: 0.05}).run()
    assert report.latencies == pytest.approx({1: 0.02, 2: 0.05})
    assert report.finished_at == pytest.approx(0.05)
    assert report.mapped_ipv4 == (("203.0.113.5", 41641),)
    assert (report.working_udp, report.working_ipv6, report.mapping_varies) == (True, False, False)


def test_each_family_is_measured():
    report = Lab({1: 0.02, (1, 6): 0.01}).run()
    assert report.wire_latencies() == pytest.approx({"1-v4": 0.02, "1-v6": 0.01})
    assert report.working_ipv6
    assert report.mapped_ipv6 == (("2001:db8::5", 41641),)


def test_dead_family_or_region_does_not_hold_up_the_rest():
    assert Lab({1: 0.02, (1, 6): None}).run().finished_at < 0.2
    assert Lab({1: 0.02, 2: 0.02, 3: 0.03, 4: None}).run().finished_at < 0.2


def test_silence_ends_after_three_seconds():
    report = Lab({1: None, 2: None}).run()
    assert report.finished_at == 3.0
    assert report.working_udp is False
    assert report.mapping_varies is None


def test_lost_first_probe_is_repeated():
    lab = Lab({1: None})
    lab.run()
    assert [at for at, _ in lab.sent] == pytest.approx([0.0, 0.1, 0.2])


def test_hard_nat_shows_in_two_answers():
    report = Lab({1: 0.02, 2: 0.03}, lambda target: ("203.0.113.5", 1000 + int(target[0][-1]))).run()
    assert report.mapping_varies is True
    assert Lab({1: 0.02}).run().mapping_varies is None


def test_second_check_asks_the_fastest_and_home_only():
    lab = Lab({n: n / 100 for n in range(1, 9)})
    lab.run()
    lab.sent.clear()
    report = lab.run(20.0, home=7)
    assert {int(target[0][-1]) for _, target in lab.sent} == {1, 2, 3, 7}
    assert not report.is_full
    lab.sent.clear()
    assert lab.run(330.0, home=7).is_full


def test_only_answers_to_questions_count():
    check = Netcheck(random.Random(1).randbytes)
    place = ("192.0.2.1", 3478)
    check.begin([RegionTargets(1, (place,))], 0.0)
    ((_, (request,)),) = check.transmit(0.0)
    transaction = stun.decode_request_untrusted(request)
    good = stun.encode_response(transaction, ("203.0.113.5", 1))
    check.receive(
        [
            (good, ("192.0.2.66", 3478)),  # another source
            (stun.encode_response(bytes(12), ("203.0.113.5", 1)), place),  # another transaction
            (stun.encode_response(transaction, ("2001:db8::5", 1)), place),  # another family
            (stun.encode_response(transaction, ("203.0.113.5", 0)), place),
            (b"noise", place),
        ],
        0.01,
    )
    assert check.take_report() is None
    assert sum(check.drops.values()) == 5
    check.receive([(good, place), (good, place)], 0.02)
    assert check.last.latencies == pytest.approx({1: 0.02})
    assert check.drops["netcheck.unasked_stun"] == 3


def test_handle_timer_twice_changes_nothing():
    check = Netcheck(random.Random(1).randbytes)
    check.begin([RegionTargets(1, (("192.0.2.1", 3478),))], 0.0)
    check.handle_timer(0.0)
    assert len(check.transmit(0.0)) == 1
    check.handle_timer(0.05)
    assert not check.transmit(0.05)


def report_of(*seen, varies=False):
    latencies = {1: 0.1, 2: 0.1} if varies else {1: 0.1}
    return Report(latencies, {}, tuple(seen), (), True, True, 0.0)


def test_endpoints_are_in_the_order_control_expects():
    found = EndpointList().gather(
        0.0,
        local_port=5,
        interfaces=["10.0.0.7", "127.0.0.1", "100.64.0.9", "fe80::1"],
        report=report_of(("203.0.113.5", 5)),
        port_mapped=("203.0.113.5", 9),
    )
    assert found == ((("203.0.113.5", 9), PORT_MAPPED), (("203.0.113.5", 5), STUN), (("10.0.0.7", 5), LOCAL))


def test_loopback_is_offered_only_alone():
    gather = EndpointList().gather
    assert gather(0.0, local_port=5, interfaces=["127.0.0.1"]) == ((("127.0.0.1", 5), LOCAL),)


def test_earlier_mappings_are_kept_for_a_while():
    endpoints = EndpointList()
    first, second = ("203.0.113.5", 1), ("203.0.113.5", 2)
    endpoints.gather(0.0, local_port=5, interfaces=[], report=report_of(first))
    later = Report({1: 0.1}, {}, (second,), (), True, True, 100.0)
    assert endpoints.gather(100.0, local_port=5, interfaces=[], report=later) == ((second, STUN), (first, STUN))
    assert endpoints.gather(320.0, local_port=5, interfaces=[], report=later) == ((second, STUN),)
    many = report_of(*(("203.0.113.5", port) for port in range(10, 30)))
    endpoints.forget()
    assert len(endpoints.gather(0.0, local_port=5, interfaces=[], report=many)) == 20
    assert len(endpoints.gather(1.0, local_port=5, interfaces=[])) == 6
    endpoints.forget()
    assert endpoints.gather(0.0, local_port=5, interfaces=[]) == ()


def test_hard_nat_with_a_fixed_port_guesses_a_forwarding():
    report = report_of(("203.0.113.5", 1), ("203.0.113.5", 2), varies=True)
    found = EndpointList().gather(0.0, local_port=5, interfaces=[], report=report, fixed_port=True)
    assert (("203.0.113.5", 5), STUN_WITH_LOCAL_PORT) in found
