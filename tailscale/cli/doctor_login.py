"""The doctor's look at what a device would log in by: whether it can work at all, before anybody is asked.

Owns: what can be told from the words alone. Refuses to know: networks, and whether a key is still good, which control
says.
"""

from __future__ import annotations

import argparse
import base64
import json
import time
from collections.abc import Sequence

import trio

from tailscale._config import Logins, logins
from tailscale.cli.findings import BAD, Finding, bad, good, warn
from tailscale.cli.session import control_url, state_path
from tailscale.errors import TailscaleError
from tailscale.state_file import FileStore
from ts_control.errors import KeyNotMade
from ts_control.key_making import CLIENT_SECRET, wish_of_secret, wish_of_workload

AUTH, API = "tskey-auth-", "tskey-api-"
OF_TAILSCALE = "tskey-"
NEW_KEY = "make an auth key: https://login.tailscale.com/admin/settings/keys, or `headscale preauthkeys create`"


async def login(options: argparse.Namespace) -> list[Finding]:
    """Only where a login is needed: a state that is good asks for nothing."""
    await trio.lowlevel.checkpoint()
    where = state_path(options)
    try:
        saved = FileStore(where).load() if where is not None else None
    except TailscaleError:
        return []  # the check of the state has said it
    if saved is not None and saved.registered:
        return [good("not needed: the stored state is registered")]
    try:
        given = logins(options.auth_key, options.client_id, options.id_token, options.audience)
        return [_judged(given, options.tags or (), control_url(options), time.time())]
    except (KeyNotMade, TailscaleError) as problem:
        return [Finding(BAD, str(problem), problem.remedy) if isinstance(problem, KeyNotMade) else bad(problem)]
    except ValueError as problem:
        return [Finding(BAD, str(problem))]


def _judged(given: Logins, tags: Sequence[str], url: str, now: float) -> Finding:
    key = given.auth_key() if callable(given.auth_key) else given.auth_key
    if given.client_id:
        wish = wish_of_workload(given.client_id, url, tags)
        token = given.id_token() if callable(given.id_token) else given.id_token
        if isinstance(token, str) and (until := _expiry(token)) is not None and until <= now:
            return Finding(
                BAD, f"the ID token ran out {now - until:.0f} s ago", "pass id_token= as a function or a file"
            )
        return good(f"by a workload's identity, asked for at {wish.base}")
    if not isinstance(key, str) or not key:
        return good("by a page that somebody has to open: no key was given")
    if key.startswith(CLIENT_SECRET):
        return good(f"by a key that an OAuth client makes at {wish_of_secret(key, tags).base}")
    if key.startswith(API):
        return Finding(BAD, "what is given as an auth key is an access token of the API: it logs nothing in", NEW_KEY)
    if key.startswith(OF_TAILSCALE) and not key.startswith(AUTH):
        kind = key.removeprefix(OF_TAILSCALE).partition("-")[0][:20]
        return warn(f"what is given as an auth key is of the kind {kind!a}, which no device logs in by", NEW_KEY)
    if not key.isascii() or not key.isprintable() or " " in key:
        return Finding(BAD, "the auth key is damaged: it holds a character that no key has", "copy it again")
    return good("by an auth key")


def _expiry(token: str) -> float | None:
    """When a JWT says that it runs out. Nothing of it is believed: its own word against itself is enough."""
    parts = token.split(".")
    try:
        until = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))["exp"]
    except (IndexError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(until) if type(until) in (int, float) else None
