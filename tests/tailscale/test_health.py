"""Warnings are one state per code: however often somebody complains, readers see how things stand."""

from __future__ import annotations

from tailscale.runtime.bus import Bus
from tailscale.runtime.health import CONTROL_LIMIT, LONGEST_TEXT, WARNING_LIMIT, Health
from tailscale.runtime.messages import WarningsChanged
from tailscale.status import HealthWarning
from ts_control.netmap import NetMap
from ts_control.wire import DisplayMessage, MapResponse, Node


def netmap(**fields: object) -> NetMap:
    return NetMap.empty().apply(MapResponse(node=Node(id=1), **fields), 1e9)  # type: ignore[arg-type]


def codes(bus: Bus) -> list[str]:
    return [warning.code for warning in Health(bus).active]


def test_everybody_with_the_bus_sees_and_changes_the_same_state() -> None:
    bus = Bus()
    Health(bus).show("a", "broken", "mend it")
    Health(bus).show("b", "also broken")
    assert Health(bus).active == (HealthWarning("a", "broken", "mend it"), HealthWarning("b", "also broken", ""))
    Health(bus).clear("a", "never-was")
    assert codes(bus) == ["b"]


def test_a_reader_hears_the_newest_state_once_however_often_it_changed() -> None:
    bus = Bus()
    with bus.subscribe(WarningsChanged) as inbox:
        for number in range(5000):
            Health(bus).show("relay-1-unwell", f"complaint {number}")
            Health(bus).clear("relay-1-unwell")
        Health(bus).show("relay-1-unwell", "at last")
        assert len(inbox) == 1
        message = inbox.take()
        assert isinstance(message, WarningsChanged)
        assert message.warnings["relay-1-unwell"].sentence == "at last"
        Health(bus).show("relay-1-unwell", "at last")
        assert len(inbox) == 0


def test_control_may_show_only_so_much_and_takes_its_own_back() -> None:
    bus = Bus()
    health = Health(bus)
    health.show("ours", "stays")
    health.show_netmap(netmap(health=tuple(f"s{n}" for n in range(1100))))
    assert len(codes(bus)) == CONTROL_LIMIT + 1
    messages = {f"m{n}": DisplayMessage(title="t", text="x") for n in range(1100)}
    health.show_netmap(netmap(display_messages=messages))
    assert len(codes(bus)) == CONTROL_LIMIT + 1
    assert "control-says-m0" in codes(bus)
    health.show_netmap(netmap())
    assert codes(bus) == ["ours"]


def test_foreign_words_are_cut_and_carry_no_control_characters() -> None:
    bus = Bus()
    Health(bus).show("x", "sick\r\nCRITICAL:root:forged\x1b[2J\u202e" + "a" * 5000, "open\nx")
    (warning,) = Health(bus).active
    assert len(warning.sentence) == LONGEST_TEXT
    assert (warning.sentence + warning.remedy).isprintable()


def test_codes_without_end_are_bounded() -> None:
    bus = Bus()
    for number in range(WARNING_LIMIT + 50):
        Health(bus).show(f"c{number}", "x")
    assert len(codes(bus)) == WARNING_LIMIT
    Health(bus).show("c0", "what is known may still change")
    assert Health(bus).active[0].sentence == "what is known may still change"
