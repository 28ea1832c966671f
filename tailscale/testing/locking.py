"""A lock over a test tailnet, with a signer that is nobody's device: what an administrator with `tailscale lock` does.

Owns the signing key. The embedded control server stores what is made here and passes it on.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING

from tailscale.errors import LockError
from ts_lock.chain import Chain
from ts_lock.disablement import disablement_value
from ts_lock.keys import LockPrivate, parse_public, public_text
from ts_lock.signatures import sign_node, wrap_auth_key
from ts_lock.updates import Checkpoint, Key, Kind, Update, hash_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from tailscale.device import Device
    from tailscale.testing.servers import Control
    from ts_control.directory import Enrolled


SECRET = b"of test tailnets, known to everyone"
"""What ends any of these locks: `disablement-secret:` and its hexadecimal digits, for a command line."""

_value = cache(partial(disablement_value, SECRET))  # slow on purpose, and the same for all


class TailnetLock:
    """The lock of a `Tailnet`. Devices that join later are locked out until `sign`."""

    def __init__(self, control: Control, entropy: Callable[[int], bytes], id_of: Callable[[Device | str], int]) -> None:
        self._control = control
        self._entropy = entropy
        self._id_of = id_of
        self._key = LockPrivate(entropy(32))
        value = _value()
        if value is None:
            raise LockError("a lock cannot be made here: Argon2i needs cryptography 47 or newer")
        state_ids = int.from_bytes(entropy(8), "big") | 1, int.from_bytes(entropy(8), "big") | 1
        named = Checkpoint((value,), (Key(self._key.public),), state_ids)
        genesis = Update(Kind.CHECKPOINT, state=named).signed_by(self._key)
        served = control.server.lock
        served.begin(genesis, {device.id: self._signature(device) for device in control.server.directory})
        self._tell()

    @property
    def head(self) -> str:
        """The newest change."""
        return hash_text(self._chain.head)

    @property
    def key(self) -> str:
        """The public half of the signer's key."""
        return public_text(self._key.public)

    def sign(self, device: Device | str) -> None:
        """The device is vouched for from now on, and may change its node key by itself."""
        enrolled = self._control.server.directory.find(self._id_of(device))
        self._control.server.lock.sign(self._signature(enrolled))
        self._tell()

    def unsign(self, device: Device | str) -> None:
        """Control says of the device that nobody signed it, whatever is true."""
        self._control.server.lock.forget_signature(self._id_of(device))
        self._tell()

    def trust(self, key: str | Device, votes: int = 1) -> None:
        """A key (`tlpub:`), or that of a device, may sign from now on."""
        public = parse_public(key if isinstance(key, str) else key.lock.our_key)
        self._change(self._chain.next_update(Kind.ADD_KEY, key=Key(public, votes)))

    def distrust(self, key: str | Device) -> None:
        """It may not any more, and what it signed is worth nothing."""
        public = parse_public(key if isinstance(key, str) else key.lock.our_key)
        self._change(self._chain.next_update(Kind.REMOVE_KEY, key_id=public))

    def wrap(self, auth_key: str) -> str:
        """An auth key whose devices are signed as they join."""
        return wrap_auth_key(auth_key, self._key, LockPrivate(self._entropy(32)))

    def disable(self) -> None:
        """The lock ends, as it does for whoever has the secret."""
        self._control.server.lock.disable(SECRET)
        self._tell()

    @property
    def _chain(self) -> Chain:
        chain = self._control.server.lock.chain
        if chain is None:
            raise LockError("this lock has ended")
        return chain

    def _signature(self, device: Enrolled) -> bytes:
        try:
            rotation = parse_public(device.lock_key)
        except ValueError:
            rotation = b""
        return sign_node(self._key, device.key.raw, rotation if any(rotation) else None).encode()

    def _change(self, update: Update) -> None:
        self._control.server.lock.update([update.signed_by(self._key)])
        self._tell()

    def _tell(self) -> None:
        self._control.do(self._control.server.tell_lock)
