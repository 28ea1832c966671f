"""The exit codes that `--help` and docs/cli.md show. How an error gets its code is said in `failures.py`."""

from __future__ import annotations

OK, FAILED, USAGE, LOGIN, UNREACHABLE, NOT_FOUND, REFUSED, STATE, TRANSFER = range(9)
INTERRUPTED = 130
EXIT_TABLE = (
    (OK, "done"),
    (FAILED, "failed: the sentence on stderr says why (doctor: something is wrong)"),
    (USAGE, "wrong usage"),
    (LOGIN, "login required, or the auth key was refused"),
    (UNREACHABLE, "unreachable: control server or peer did not answer, is offline, or there is no route"),
    (NOT_FOUND, "no such name or address in the tailnet"),
    (REFUSED, "the peer refused the connection: closed port or policy"),
    (STATE, "the state file is in use or cannot be used"),
    (TRANSFER, "a transfer of files failed or was refused; the same again goes on where it broke off"),
    (INTERRUPTED, "Ctrl-C (128 + the signal's number for others)"),
)
