"""An actor that fails is told of and started again; a loop of failures ends the Device with a typed error."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from tailscale.errors import ControlUnreachable, DeviceFailed, TailscaleError
from tailscale.runtime.bus import Bus
from tailscale.runtime.health import Health
from tailscale.runtime.supervision import FAILURES_LIMIT, FAILURES_WITHIN, STEADY, CallbackFailed, Supervision
from ts_base.errors import BadPacket
from ts_derp.errors import RelayLost


class Failing:
    """An actor that does what it is told, one deed per life."""

    def __init__(self, *deeds: Callable[[], Awaitable[None]]) -> None:
        self._deeds = iter(deeds)
        self.lives: list[float] = []

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> None:
        self.lives.append(trio.current_time())
        task_status.started()
        await next(self._deeds, trio.sleep_forever)()


def raising(error: BaseException, after: float = 0) -> Callable[[], Awaitable[None]]:
    async def deed() -> None:
        await trio.sleep(after)
        raise error

    return deed


async def in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raising(KeyError("deep")))
        nursery.start_soon(trio.sleep_forever)


async def test_actor_that_fails_is_started_again_told_of_and_forgiven(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    bus, actor = Bus(), Failing(raising(ValueError("odd bytes")), in_a_nursery)
    supervision = Supervision(bus)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervision.run_forgiver)
        await nursery.start(supervision.keep, "relays", actor)
        await trio.sleep(STEADY / 2)
        assert len(actor.lives) == 3
        assert supervision.statistics().failures == {"relays": 2}
        (told,) = Health(bus).active
        assert told.code == "failed-relays"
        assert "odd bytes" not in str(told), "what bytes said stays in the log"
        await trio.sleep(STEADY)
        assert not Health(bus).active
        nursery.cancel_scope.cancel()
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert all(record.exc_info is not None for record in caplog.records)


async def test_pauses_grow_while_it_fails_and_are_short_again_after_a_long_life(autojump_clock: MockClock) -> None:
    error = ValueError("odd bytes")
    actor = Failing(*[raising(error)] * 5, raising(error, after=STEADY), trio.sleep_forever)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Supervision(Bus()).keep, "relays", actor)
        await trio.sleep(10 * STEADY)
        nursery.cancel_scope.cancel()
    pauses = [later - earlier for earlier, later in zip(actor.lives, actor.lives[1:], strict=False)]
    assert pauses[:5] == sorted(pauses[:5])
    assert pauses[-1] - STEADY == pytest.approx(pauses[0])


async def test_loop_of_failures_ends_with_a_typed_error(autojump_clock: MockClock) -> None:
    actor = Failing(*[raising(ValueError("odd bytes"))] * 100)
    with pytest.RaisesGroup(pytest.RaisesExc(DeviceFailed, match="its relays failed 8 times within 60 s")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Supervision(Bus()).keep, "relays", actor)
    assert len(actor.lives) == FAILURES_LIMIT


async def test_rare_failures_never_end_it(autojump_clock: MockClock) -> None:
    seldom = FAILURES_WITHIN / (FAILURES_LIMIT - 2)
    actor = Failing(*[raising(ValueError("odd bytes"), after=seldom)] * 50)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Supervision(Bus()).keep, "relays", actor)
        await trio.sleep(100 * seldom)
        nursery.cancel_scope.cancel()
    assert len(actor.lives) == 51


@pytest.mark.parametrize("decision", [ControlUnreachable("no"), ExceptionGroup("two", [TailscaleError("no")])])
async def test_decisions_pass(autojump_clock: MockClock, decision: Exception) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Supervision(Bus()).keep, "control", Failing(raising(decision)))
    assert caught.value.split(TailscaleError)[1] is None


async def test_actor_that_ends_by_itself_has_ended(autojump_clock: MockClock) -> None:
    actor = Failing(trio.lowlevel.checkpoint)
    with trio.fail_after(1):
        await Supervision(Bus()).keep("netmap", actor)
    assert len(actor.lives) == 1


@pytest.mark.parametrize("of_others", [BadPacket("odd"), ExceptionGroup("one", [RelayLost("gone")])])
async def test_errors_that_tell_of_others_are_no_decisions(autojump_clock: MockClock, of_others: Exception) -> None:
    actor, supervision = Failing(raising(of_others)), Supervision(Bus())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervision.keep, "control", actor)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert len(actor.lives) == 2


async def test_what_a_callback_of_the_program_raised_passes(autojump_clock: MockClock) -> None:
    supervision = Supervision(Bus())
    with pytest.raises(CallbackFailed), supervision.contained("answers"):
        raise CallbackFailed
    with pytest.raises(CallbackFailed):
        await supervision.keep("control", Failing(raising(CallbackFailed())))
    assert supervision.statistics().failures == {}


async def test_what_is_contained_ends_alone_and_a_cancellation_beside_it_stays_one(autojump_clock: MockClock) -> None:
    bus = Bus()
    supervision = Supervision(bus)
    with supervision.contained("answers"):
        raise ValueError("odd bytes")
    with trio.CancelScope() as scope:
        with supervision.contained("answers"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(raising_when_cancelled)
                nursery.start_soon(trio.sleep_forever)
                await trio.lowlevel.checkpoint()
                scope.cancel()
        pytest.fail("the cancellation was lost")
    assert scope.cancelled_caught
    assert supervision.statistics().failures == {"answers": 2}
    with trio.move_on_after(2 * STEADY):
        await supervision.run_forgiver()
    assert not Health(bus).active


async def raising_when_cancelled() -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("while going")


async def test_parts_that_fail_at_once_have_a_warning_each(autojump_clock: MockClock) -> None:
    bus = Bus()
    supervision = Supervision(bus)
    async with trio.open_nursery() as nursery:
        for name in ("paths", "relays"):
            nursery.start_soon(supervision.keep, name, Failing(raising(ValueError("odd bytes"))))
        await trio.sleep(1)
        assert {warning.code for warning in Health(bus).active} == {"failed-paths", "failed-relays"}
        nursery.cancel_scope.cancel()
