"""The `tailnet` fixture: a tailnet of the test's own, gone when the test is, under whatever the test runs.

Under pytest-trio it is `tailscale.testing.Tailnet`, in this process alone, and with `autojump_clock` minutes pass in no
time. Elsewhere it is on loopback: for a plain `def` test `tailscale.testing.sync.Tailnet`, under pytest-asyncio and
anyio `tailscale.testing.aio.Tailnet`, under anyio's trio `tailscale.testing.threaded.TrioTailnet`.
Importing this module is cheap: suites that never use the fixture load nothing for it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tailscale.testing.tailnet import Tailnet


@pytest.fixture
def tailnet(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A tailnet of this test's own: `device = await tailnet.device("a")`, and no `await` in a test without a loop."""
    kind = _kind_of(request)
    if kind == "trio":
        yield request.getfixturevalue("_tailnet_in_trio")
    elif kind == "asyncio":
        from tailscale.testing.aio import Tailnet as AioTailnet

        with AioTailnet() as asyncio_net:
            yield asyncio_net
    elif kind == "anyio-trio":
        from tailscale.testing.threaded import TrioTailnet

        with TrioTailnet() as trio_net:
            yield trio_net
    else:
        from tailscale.testing.sync import Tailnet as SyncTailnet

        with SyncTailnet() as net:
            yield net


@pytest.fixture
async def _tailnet_in_trio() -> AsyncIterator[Tailnet]:
    from tailscale.testing.tailnet import Tailnet

    async with Tailnet() as net:
        yield net


def _kind_of(request: pytest.FixtureRequest) -> str:
    """What runs the test that asks, directly or through its other fixtures."""
    test, config = request.node, request.config
    if not inspect.iscoroutinefunction(inspect.unwrap(getattr(test, "obj", None) or request.function)):
        return "threads"
    if test.get_closest_marker("trio") is not None:
        return _with_pytest_trio(config)
    if test.get_closest_marker("anyio") is not None:
        return "asyncio" if request.getfixturevalue("anyio_backend_name") == "asyncio" else "anyio-trio"
    if test.get_closest_marker("asyncio") is not None:
        return "asyncio"
    return _with_pytest_trio(config)


def _with_pytest_trio(config: pytest.Config) -> str:
    if not config.pluginmanager.hasplugin("trio"):
        pytest.fail(
            "nothing runs this async test with the fixture `tailnet`: pip install 'pytailscale[testing]' for trio and "
            "mark it `trio`, or install pytest-asyncio and mark it `asyncio`",
            pytrace=False,
        )
    return "trio"
