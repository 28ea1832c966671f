"""Linux's own TCP as referee: every byte arrives, both ways, over bad paths, and no slower than the kernel would be.

    sudo .venv/bin/python -m pytest tests/referee -s          # scaled sizes, under three minutes
    sudo REFEREE_FULL=1 .venv/bin/python -m pytest tests/referee -s   # 64 MiB in every row

Times are real, so figures move a little with the machine; the seeds fix which packets suffer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from referee_rig import Path, Referee, Result, why_not

MIB = 1 << 20
IS_FULL = os.environ.get("REFEREE_FULL", "") not in {"", "0"}
PATIENCE = 3600 if IS_FULL else 100

pytestmark = [pytest.mark.root, pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE)]
if reason := why_not():
    pytest.skip(reason, allow_module_level=True)

# What happens on the way, and how many MiB go over it when there is no time for 64. Milliseconds are round trips.
ROWS: dict[str, tuple[Path, int]] = {
    "1 ms": (Path(delay=0.0005), 64),
    "200 ms": (Path(delay=0.1), 16),
    "1 % loss, 4 ms": (Path(delay=0.002, loss=0.01), 8),
    "3 % loss, 4 ms": (Path(delay=0.002, loss=0.03), 4),
    "10 % loss, 2 ms": (Path(delay=0.001, loss=0.1), 2),
    "25 % reorder, 20 ms": (Path(delay=0.01, reorder=0.25), 8),
    "5 % duplicates, 20 ms": (Path(delay=0.01, duplicate=0.05), 32),
    "0.1 % corruption, 4 ms": (Path(delay=0.002, corrupt=0.001), 16),
    "all of it, 10 ms": (Path(delay=0.005, loss=0.01, reorder=0.25, duplicate=0.05, corrupt=0.001), 2),
}
LOSSY = Path(delay=0.02, loss=0.01)
BOTTLENECK = 50e6
LONG = Path(delay=0.05, rate=BOTTLENECK, queue=int(BOTTLENECK * 0.1 / 8))  # the queue holds one round trip

Table = list[tuple[str, str, Result]]


@pytest.fixture(scope="module")
def referee() -> Iterator[Referee]:
    with Referee() as made:
        yield made


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    rows: Table = []
    yield rows
    terminal = request.config.pluginmanager.getplugin("capturemanager")
    with terminal.global_and_fixture_disabled():
        print(f"\n{'path':<28}{'sender > receiver':<20}{'MiB':>6}{'s':>8}{'Mbit/s':>10}")
        for path, who, result in rows:
            print(f"{path:<28}{who:<20}{result.size // MIB:>6}{result.seconds:>8.1f}{result.megabits:>10.1f}")


def size_of(scaled: int) -> int:
    return (64 if IS_FULL else scaled) * MIB


@pytest.mark.parametrize("name", ROWS)
def test_every_byte_we_send_arrives(name: str, referee: Referee, table: Table) -> None:
    path, scaled = ROWS[name]
    table.append((name, "ours > kernel", referee.ours_to_kernel(path, size_of(scaled), limit=PATIENCE)))


@pytest.mark.parametrize("name", ROWS)
def test_every_byte_the_kernel_sends_arrives(name: str, referee: Referee, table: Table) -> None:
    path, scaled = ROWS[name]
    table.append((name, "kernel > ours", referee.kernel_to_ours(path, size_of(scaled), limit=PATIENCE)))


def test_ip6_is_no_different(referee: Referee, table: Table) -> None:
    path, scaled = ROWS["1 % loss, 4 ms"]
    for who, transfer in (("ours > kernel", referee.ours_to_kernel), ("kernel > ours", referee.kernel_to_ours)):
        table.append(("IPv6, 1 % loss, 4 ms", who, transfer(path, size_of(scaled), limit=PATIENCE, family=1)))


def test_goodput_under_loss_is_near_the_kernels(referee: Referee, table: Table) -> None:
    size = size_of(4)
    kernel = referee.kernel_to_kernel(LOSSY, size, limit=PATIENCE)
    ours = referee.ours_to_kernel(LOSSY, size, limit=PATIENCE)
    table += [("1 % loss, 40 ms", "kernel > kernel", kernel), ("1 % loss, 40 ms", "ours > kernel", ours)]
    assert ours.megabits >= 0.8 * kernel.megabits


def test_a_long_clean_path_is_filled_by_one_stream(referee: Referee, table: Table) -> None:
    size = size_of(32)
    name = f"{BOTTLENECK / 1e6:.0f} Mbit/s, 100 ms"
    kernel = referee.kernel_to_kernel(LONG, size, limit=PATIENCE)
    ours = referee.ours_to_kernel(LONG, size, limit=PATIENCE)
    theirs = referee.kernel_to_ours(LONG, size, limit=PATIENCE)
    table += [(name, "kernel > kernel", kernel), (name, "ours > kernel", ours), (name, "kernel > ours", theirs)]
    assert ours.megabits * 1e6 >= 0.8 * BOTTLENECK
    assert theirs.megabits >= 0.8 * kernel.megabits  # here the sender is the kernel's, the window ours
