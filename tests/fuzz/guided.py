"""The same targets guided by coverage, where atheris is installed (`pip install atheris`; it is no dependency of ours).

The corpus starts from the target's seeds. libFuzzer's own report says what it found; its crash files are ordinary
inputs for `--replay`.
"""

from __future__ import annotations

import sys

from fuzz.campaign import CRASHES, Target

OURS = ["tailscale", "ts_base", "ts_control", "ts_dataplane", "ts_derp", "ts_netstack", "ts_tunnel"]


def run(name: str, inputs: int | None, minutes: float | None, seed: int) -> int:
    try:
        import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        print("atheris is not installed: pip install atheris, or leave --atheris out for the built-in mutations")
        return 2
    with atheris.instrument_imports(include=OURS):
        target = Target.load(name)
    corpus = CRASHES / "corpus" / name  # it grows from run to run
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(data)
    options = [f"-seed={seed}", f"-artifact_prefix={CRASHES}/{name}-", "-max_len=4096", "-print_final_stats=1"]
    if inputs:
        options.append(f"-runs={inputs}")
    if minutes:
        options.append(f"-max_total_time={int(minutes * 60)}")
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.fuzz_one)
    atheris.Fuzz()
    return 0
