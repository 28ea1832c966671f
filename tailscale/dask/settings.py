"""What `distributed.comm.ts` of dask's configuration says, read into the arguments of a Device.

Owns the keys, and why the auth key is none of them: every worker shows its whole configuration to whoever asks.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.config

from tailscale._spelling import default_hostname
from tailscale.errors import TailscaleError

if TYPE_CHECKING:
    from tailscale.threads.face import DeviceOptions

PREFIX = "distributed.comm.ts"
DEFAULTS: dict[str, Any] = {
    "hostname": None,  # TS_HOSTNAME, then the machine's name; a worker that dask starts adds -worker-<process id>
    "control-url": None,  # TS_CONTROL_URL, then Tailscale's own
    "auth-key-file": None,  # a file that holds the key; without one TS_AUTHKEY
    "tags": [],
    "state": None,  # a directory that keeps the identity of a scheduler; workers that dask starts have none
    "contact": "ip",  # how a listener is called in the addresses that others get: "ip" or "name"
}
CONTACTS = ("ip", "name")


class UnusableSetting(TailscaleError, ValueError):
    """A key of `distributed.comm.ts` has a value that cannot be followed."""


def register() -> None:
    """Let dask know the keys, below whatever files and environment say."""
    dask.config.update_defaults({"distributed": {"comm": {"ts": dict(DEFAULTS)}}})


def setting(name: str) -> Any:
    return dask.config.get(f"{PREFIX}.{name}", DEFAULTS[name])


def contact_by_name() -> bool:
    contact = setting("contact")
    if contact not in CONTACTS:
        raise UnusableSetting(f'{PREFIX}.contact is {contact!r}: set it to "ip" or "name"')
    return bool(contact == "name")


def is_started_by_dask() -> bool:
    """Whether this process is one that a nanny started, and so shares its environment with the nanny's own."""
    return multiprocessing.parent_process() is not None


def device_options() -> tuple[str, DeviceOptions]:
    """Name and options of the Device that this process needs."""
    if dask.config.get(f"{PREFIX}.auth-key", None) is not None:
        raise UnusableSetting(
            f"{PREFIX}.auth-key is set, but dask shows its configuration to every client: set TS_AUTHKEY, or "
            f"{PREFIX}.auth-key-file to a file that holds the key, and replace the key"
        )
    hostname = setting("hostname") or default_hostname()
    options: DeviceOptions = {"tags": tuple(setting("tags") or ())}
    if setting("control-url"):
        options["control_url"] = setting("control-url")
    if setting("auth-key-file"):
        options["auth_key"] = f"file:{Path(setting('auth-key-file')).expanduser()}"
    if is_started_by_dask():
        return f"{hostname}-worker-{os.getpid()}", options
    if setting("state"):
        options["state"] = setting("state")
    return hostname, options
