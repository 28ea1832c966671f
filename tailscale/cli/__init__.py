"""The command line `pytailscale`: a thin face over `Device`.

Owns nothing but the way from `argv` to an exit code; each command lives in a file of its own and is imported when it is
asked for. `docs/cli.md` is the manual.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Wrong usage and `--help` leave by SystemExit, as argparse does."""
    import sys

    from tailscale.daemon.light import run_through_daemon

    words = sys.argv[1:] if argv is None else argv
    try:
        code = run_through_daemon(words)
        if code is not None:
            return code
        from tailscale.cli.arguments import parse

        options = parse(words)  # `--help` ends here, before anything heavy is imported
        from tailscale.cli.run import run

        return run(options)
    except KeyboardInterrupt:  # before there was anything to take down
        return 130


__all__ = ["main"]
