"""Checks of this machine, which need no tailnet: the installation, the environment, the state file, the clock."""

from __future__ import annotations

import argparse
import os
import platform
import re
import ssl
import sys
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import trio

import tailscale
from tailscale.cli.findings import BAD, SKIP, Finding, fault, good, warn
from tailscale.cli.queries import EXTRAS, STANDS_ON
from tailscale.cli.session import control_url, state_path
from tailscale.errors import StateLocked
from tailscale.state_file import FileStore
from ts_base.optional import optional

OLDEST_PYTHON = (3, 11)
CLOCK_TOLERANCE = 90.0  # seconds; certificates and WireGuard's own timestamps bear more, key expiry does not
CLOCK_TIMEOUT = 5.0
SECRETS = ("TS_AUTHKEY", "TS_AUTH_KEY", "TS_CLIENT_SECRET", "TS_ID_TOKEN")
HEEDED = (
    "TS_CONTROL_URL",
    "TS_HOSTNAME",
    "TS_CLIENT_ID",
    "TS_AUDIENCE",
    "TSNET_FORCE_LOGIN",
    "SSL_CERT_FILE",
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
)
FOR_RIGS = ("TS_DEBUG_USE_DERP_HTTP", "TS_DEBUG_NEVER_DIRECT_UDP")
EXTRA_GIVES = {"rich": "pretty tables: pip install pytailscale[cli]", "numpy": "faster sending: pytailscale[fast]"}


async def import_name(options: argparse.Namespace) -> list[Finding]:
    """That `import tailscale` means us: starting at all has shown that no rival distribution shares the name."""
    await trio.lowlevel.checkpoint()
    where = Path(tailscale.__file__).parent
    rooms = ("ts_base", "ts_control", "ts_dataplane", "ts_derp", "ts_netstack", "ts_tunnel")
    strangers = [room for room in rooms if Path(str(sys.modules[room].__file__)).parent.parent != where.parent]
    if strangers:
        remedy = "pip uninstall pytailscale, then install it again in a fresh environment"
        return [Finding(BAD, f"{', '.join(strangers)} come from another place than {where}", remedy)]
    return [good(f"pytailscale {tailscale.__version__} in {where}")]


async def python(options: argparse.Namespace) -> list[Finding]:
    await trio.lowlevel.checkpoint()
    name = f"{platform.python_implementation()} {platform.python_version()}, {ssl.OPENSSL_VERSION}"
    if sys.version_info < OLDEST_PYTHON:
        return [Finding(BAD, f"{name} is too old", "install Python 3.11 or newer")]
    return [good(name)]


async def dependencies(options: argparse.Namespace) -> list[Finding]:
    await trio.lowlevel.checkpoint()
    found, missing = [], []
    for name in STANDS_ON:
        try:
            found.append(f"{name} {distribution(name).version}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return [Finding(BAD, f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")]
    absent = [EXTRA_GIVES[name] for name in EXTRAS if name in EXTRA_GIVES and optional(name) is None]
    return [good(f"{len(found)} present" + (f" (optional: {'; '.join(absent)})" if absent else ""))]


async def environment(options: argparse.Namespace) -> list[Finding]:
    """Which variables take part; the secret ones only by name."""
    await trio.lowlevel.checkpoint()
    findings = [
        warn(f"{name} is set: that is for test rigs, and slows a real device down", f"unset {name}")
        for name in FOR_RIGS
        if os.environ.get(name)
    ]
    bundle = os.environ.get("SSL_CERT_FILE")
    if bundle and not os.access(bundle, os.R_OK):
        findings.append(Finding(BAD, f"SSL_CERT_FILE names {bundle}, which cannot be read", "correct or unset it"))
    used = [f"{name}={_without_password(os.environ[name])}" for name in HEEDED if os.environ.get(name)]
    used += [f"{name} (secret)" for name in SECRETS if os.environ.get(name)]
    return [good(", ".join(used) or "nothing set"), *findings]


def _without_password(value: str) -> str:
    """A proxy's URL may carry one."""
    return re.sub(r"//[^/@]*@", "//...@", value)


async def state(options: argparse.Namespace) -> list[Finding]:
    await trio.lowlevel.checkpoint()
    where = state_path(options)
    if where is None:
        return [good("kept nowhere: --ephemeral")]
    store = FileStore(where)
    saved = store.load()
    if saved is None:
        parent = next(place for place in store.path.parents if place.exists())
        if not os.access(parent, os.W_OK):
            return [Finding(BAD, f"{parent} cannot be written", "--state names another place")]
        return [good(f"none yet at {store.path}: `pytailscale login` makes it")]
    known = f"registered with {saved.control_url}" if saved.registered else "not registered yet"
    try:
        with store.lock():
            pass
    except StateLocked as held:
        if held.pid != os.getpid():
            raise
        return [good(f"{store.path}: private, in use by the daemon that runs this, {known}")]
    return [good(f"{store.path}: private, readable, {known}")]


async def clock(options: argparse.Namespace) -> list[Finding]:
    """Our wall clock against the control server's Date header."""
    import httpx

    url = control_url(options)
    try:
        async with httpx.AsyncClient(verify=ssl.create_default_context(), timeout=CLOCK_TIMEOUT) as client:
            before = time.time()
            answer = await client.get(f"{url.rstrip('/')}/health")
            middle = (before + time.time()) / 2
        told = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (httpx.HTTPError, OSError, ValueError):
        return [_cannot_compare(url)]
    except KeyError:
        return [Finding(SKIP, f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC; {url} does not tell its time")]
    ahead = middle - told
    if abs(ahead) > CLOCK_TOLERANCE:
        direction = "ahead of" if ahead > 0 else "behind"
        return [fault("clock-wrong", f"this machine is {abs(ahead):.0f} s {direction} {url}")]
    return [good(f"within {max(1.0, abs(ahead)):.0f} s of {url}")]


def _cannot_compare(url: str) -> Finding:
    now = datetime.now(UTC)
    if now.year < 2025:
        return fault("clock-wrong", f"this machine thinks it is {now:%Y-%m-%d}: no certificate is valid then", BAD)
    return Finding(SKIP, f"{now:%Y-%m-%d %H:%M:%S} UTC; {url} could not be asked for its time")
