"""Every target a few hundred inputs, every input that once found a bug, and the runner's own promises."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz import campaign
from fuzz.campaign import Campaign, Target, names, regressions, shrink
from fuzz.mutation import Mutator

ROOT = Path(__file__).parents[2]
INPUTS = 300
ENOUGH = 1.0  # seconds of one target

OUTSIDE = [*ROOT.glob("ts_*/*.py"), *ROOT.glob("tailscale/**/*.py")]


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_target_holds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "CRASHES", tmp_path)
    target = Target.load(name)
    Campaign([target], seed=7, inputs=max(INPUTS, len(target.seeds)), minutes=ENOUGH / 60).run()
    assert not target.failures, "\n".join(failure.report for failure in target.failures.values())
    assert target.inputs >= len(target.seeds)


@pytest.mark.parametrize(("name", "file"), [(name, file) for name in names() for file, _ in regressions(name)])
def test_what_once_failed_holds(name: str, file: str) -> None:
    Target.load(name).fuzz_one(dict(regressions(name))[file])


def test_every_untrusted_parser_is_reached_by_a_target() -> None:
    """By name: called in a target, or called in code by a function that is."""
    parsers = {found for path in OUTSIDE for found in re.findall(r"def (\w+_untrusted)\(", path.read_text())}
    targets = "\n".join(path.read_text() for path in Path(campaign.HERE).glob("fuzz_*.py"))
    reached_inside = {
        "_address_untrusted": "decode_response_untrusted",
        "_binary_untrusted": "decode_proxy_header_untrusted",
        "_body_untrusted": "decode_records_untrusted",
        "_cut_untrusted": "FrameReader",
        "_line_untrusted": "decode_proxy_header_untrusted",
        "_parse_untrusted": "decode_response_untrusted",
        "_request_untrusted": "answer_c2n_untrusted",
        "_service_address_untrusted": "addresses_in",
        "_skip_record_untrusted": "decode_records_untrusted",
        "_strings_untrusted": "decode_records_untrusted",
        "_quoted_untrusted": "read_error_untrusted",
        "_name_untrusted": "decode_hello_untrusted",
        "_protocols_untrusted": "decode_hello_untrusted",
        "_text_of_untrusted": "token_of_untrusted",
        "decode_address_untrusted": "decode_datagram_untrusted",
        "decode_parts_untrusted": "decode_map_response_steps",
        "finish_untrusted": "ClientTransport",
        "key_bytes_untrusted": "NodePublic",
        "parse_untrusted": "Policy.parse",
        "read_untrusted": "read_initiation_untrusted",
        "sender_untrusted": "open_untrusted",
    }
    missing = {name for name in parsers if f"{reached_inside.get(name, name)}" not in targets}
    assert not missing, f"no fuzz target calls {', '.join(sorted(missing))}"


def test_the_same_seed_makes_the_same_inputs() -> None:
    seeds = [b"hello 12", b'{"a": [1, "x"]}', bytes(range(40))]
    one, other = (Mutator(seeds, "name", 3) for _ in range(2))
    assert [one.input(n) for n in range(200)] == [other.input(n) for n in reversed(range(200))][::-1]
    assert one.input(1) != Mutator(seeds, "name", 4).input(1)


def test_a_failure_is_made_small_and_kept_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "HERE", tmp_path / "tests" / "fuzz")
    monkeypatch.setattr(campaign, "CRASHES", tmp_path / "tests" / "fuzz" / "crashes")
    (tmp_path / "tests" / "fuzz").mkdir(parents=True)

    def picky(data: bytes) -> None:
        if b"\xff" in data and len(data) > 3:
            raise KeyError("no")

    target = Target("picky", picky, [bytes(range(200, 256))])
    Campaign([target], seed=1, inputs=500, minutes=math.inf).run()
    (failure,) = target.failures.values()
    assert failure.data == bytes(3) + b"\xff" or sorted(failure.data) == [0, 0, 0, 255]
    assert failure.path.read_bytes() == failure.data
    assert (
        f"--target picky --replay tests/fuzz/crashes/{failure.path.name}"
        in failure.path.with_suffix(".txt").read_text()
    )


def test_shrinking_ends_at_what_matters() -> None:
    assert shrink(b"abcdefXghijkYlm", lambda data: b"X" in data and b"Y" in data) == b"XY"


def test_an_input_without_end_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "TOO_LONG", 0.1)
    monkeypatch.setattr(campaign.Failure, "keep", lambda self: None)

    def endless(data: bytes) -> None:
        while data:
            pass

    target = Target("endless", endless, [b"x"])
    Campaign([target], seed=1, inputs=2, minutes=math.inf).run()
    assert list(target.failures) == ["TookTooLong"]


def test_the_command_line_reports_a_table() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "200", "--target", "stun", "--target", "geneve"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert re.search(r"^all +200 ", done.stdout, re.MULTILINE)


def test_guidance_by_coverage_says_when_it_cannot() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--atheris", "--target", "stun", "--inputs", "50"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or done.stdout.startswith("atheris is not installed")
