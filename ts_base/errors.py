"""The root of every error of ours, and the one error that bytes from outside may raise."""


class TailscaleError(Exception):
    """Base of every error this library raises on purpose."""

    fault: str = ""
    """What is wrong in one word, where errors, `explain` and the doctor have one for it; docs/explain.md lists them."""


class BadPacket(TailscaleError, ValueError):
    """Bytes from outside are not what the protocol allows. Parsers of untrusted input raise nothing else."""
