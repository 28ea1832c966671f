"""How messages are delivered: retained, event, lossy."""

from __future__ import annotations

import pytest
import trio

from tailscale.runtime.bus import RELIABLE_LIMIT, Bus, InboxOverflow, Lossy, Reliable, Retained


class Weather(Retained, frozen=True):
    value: int


class Knock(Reliable, frozen=True):
    value: int


class Noise(Lossy, frozen=True):
    value: int


async def test_a_late_subscriber_gets_the_newest_retained_message() -> None:
    bus = Bus()
    bus.publish(Weather(1))
    bus.publish(Weather(2))
    with bus.subscribe(Weather) as inbox:
        assert await inbox.receive() == Weather(2)
        assert len(inbox) == 0
    assert bus.latest(Weather) == Weather(2)


async def test_only_the_newest_unread_retained_message_waits() -> None:
    bus = Bus()
    with bus.subscribe(Weather, Knock) as inbox:
        bus.publish(Weather(1))
        bus.publish(Knock(1))
        bus.publish(Weather(2))
        assert [await inbox.receive(), await inbox.receive()] == [Knock(1), Weather(2)]
        assert len(inbox) == 0


async def test_lossy_messages_drop_the_oldest_and_count() -> None:
    bus = Bus()
    with bus.subscribe(Noise) as inbox:
        for i in range(Noise.limit + 5):
            bus.publish(Noise(i))
        assert bus.statistics().drops == {"bus.subscriber_full": 5}
        assert await inbox.receive() == Noise(5)
        assert len(inbox) == Noise.limit - 1


async def test_an_unread_event_inbox_is_a_bug_that_names_its_owner() -> None:
    bus = Bus()
    with bus.subscribe(Knock, name="sleeper"):
        for i in range(RELIABLE_LIMIT):
            bus.publish(Knock(i))
        with pytest.raises(InboxOverflow, match="sleeper"):
            bus.publish(Knock(-1))


async def test_a_cancelled_receive_loses_nothing() -> None:
    bus = Bus()
    with bus.subscribe(Knock) as inbox:
        bus.publish(Knock(1))
        with trio.CancelScope() as scope:
            scope.cancel()
            await inbox.receive()
        assert await inbox.receive() == Knock(1)


async def test_leaving_the_subscription_stops_delivery() -> None:
    bus = Bus()
    with bus.subscribe(Knock) as inbox:
        pass
    bus.publish(Knock(1))
    assert len(inbox) == 0
