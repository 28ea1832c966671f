"""What a host and control say of Services to each other."""

from __future__ import annotations

import base64
import hashlib

import pytest

from ts_base.errors import BadPacket
from ts_base.ip import parse_address
from ts_control.c2n import Facts, answer_c2n_untrusted
from ts_control.server_services import QUESTION
from ts_control.services import MOST_SERVICES, addresses_in, hosted_untrusted, label_of, services_hash, services_of

WEB = services_of([("svc:web", 80)])


def test_the_hash_of_what_is_hosted_is_upstreams() -> None:
    told = b'[{"Name":"svc:web","Ports":["tcp:80"],"Active":true}]\n'
    assert services_hash(WEB) == hashlib.sha256(told).hexdigest()
    assert (services_hash(WEB)[:8], services_hash(WEB)[-4:]) == ("00912265", "6417")
    assert services_hash(()) == ""


def test_neighbouring_ports_are_told_together_and_services_in_order() -> None:
    told = services_of([("svc:web", 82), ("svc:db", 5432), ("svc:web", 80), ("svc:web", 81), ("svc:web", 443)])
    assert [(one.name, one.ports) for one in told] == [
        ("svc:db", ("tcp:5432",)),
        ("svc:web", ("tcp:80-82", "tcp:443")),
    ]


def test_control_is_told_what_is_hosted_when_it_asks() -> None:
    answer = answer_c2n_untrusted(QUESTION, lambda: Facts(hosted=WEB))
    body = answer.partition(b"\r\n\r\n")[2]
    assert body == (
        b'{"VIPServices":[{"Name":"svc:web","Ports":["tcp:80"],"Active":true}],"ServicesHash":"%b"}'
        % services_hash(WEB).encode()
    )
    assert hosted_untrusted(answer) == ("svc:web",)
    assert base64.b64decode(QUESTION).startswith(b"GET /vip-services HTTP/1.1\r\n")


def test_a_service_that_is_drained_is_not_hosted() -> None:
    answer = b'HTTP/1.1 200 OK\r\n\r\n{"VIPServices":[{"Name":"svc:a","Active":false},{"Name":"svc:b","Active":true}]}'
    assert hosted_untrusted(answer) == ("svc:b",)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n[", b"HTTP/1.1 200 OK\r\n\r\n[]", b"HTTP/1.1 404 No\r\n\r\n{}"]
)
def test_an_answer_that_says_nothing_is_a_bad_packet(answer: bytes) -> None:
    with pytest.raises(BadPacket):
        hosted_untrusted(answer)


def test_addresses_are_those_that_control_lists_in_its_order() -> None:
    told = {
        "service-host": [{"svc:web": ["100.64.0.9", "fd7a:115c:a1e0::9"]}, {"svc:web": ["100.64.0.9"]}, 7, {"x": 1}]
    }
    found = addresses_in(told)
    assert found["svc:web"] == (parse_address("100.64.0.9"), parse_address("fd7a:115c:a1e0::9"))
    assert addresses_in({"service-host": None}) == {} == addresses_in({})


def test_addresses_outside_the_tailnet_are_not_ours_to_answer_at() -> None:
    assert addresses_in({"service-host": [{"svc:web": ["8.8.8.8", "10.0.0.1", "127.0.0.1", "x", None]}]}) == {
        "svc:web": ()
    }


def test_only_so_many_services_are_looked_at() -> None:
    assert len(addresses_in({"service-host": [{f"svc:s{i}": [] for i in range(2 * MOST_SERVICES)}]})) == MOST_SERVICES


@pytest.mark.parametrize("name", ["web", "svc:", "svc:-a", "svc:a-", "svc:A", "svc:a.b", "svc:" + "a" * 64, "svc:a\n"])
def test_a_name_that_is_no_service_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="svc: and a DNS label"):
        label_of(name)
