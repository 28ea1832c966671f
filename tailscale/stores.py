"""Stores for places that have no disk of their own: the environment, a Kubernetes Secret, the system's keyring.

Each keeps the identity there, as the entry "device". Entries that only make the next start quicker stay in memory where
the place is too small for them. Refuses to guess, as files do: what cannot be read or kept is `StateCorrupt`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailscale.errors import StateCorrupt, StateLocked
from tailscale.state_file import DEVICE, MemoryStore
from ts_base.optional import optional

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE = 5.0  # seconds for the cluster's API to answer
LONGEST_ANSWER = 4 << 20  # a Secret holds 1 MiB, which is a third longer in base64


class EnvironmentStore:
    """The identity in an environment variable, as the platform's secrets arrive: what `state.json` says, as it is.

    A process cannot change what it will be started with, and loses a key that was renewed: for identities whose key
    does not expire.

    ```python
    from tailscale.stores import EnvironmentStore

    async with tailscale.Device("job", state=EnvironmentStore("TS_STATE"), ephemeral=True) as device:
        print(device.ipv4)
    ```
    """

    forgets_entries = True
    """All but the identity is gone with the process."""

    def __init__(self, variable: str = "TS_STATE") -> None:
        self._variable = variable
        self._memory = MemoryStore()
        text = os.environ.get(variable)
        if text:
            try:
                self._memory.write(DEVICE, text.encode())
            except ValueError as problem:
                raise StateCorrupt(f"the state in ${variable} cannot be used: {problem}") from None

    def __repr__(self) -> str:
        return f"EnvironmentStore({self._variable!r})"

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """One Device at a time in this process; of other processes nobody knows."""
        return self._memory.lock()

    def read(self, name: str) -> bytes | None:
        """The entry, if there is one."""
        return self._memory.read(name)

    def write(self, name: str, data: bytes) -> None:
        """Remember the entry as long as the process lives."""
        self._memory.write(name, data)

    def delete(self, name: str) -> None:
        """Forget the entry."""
        self._memory.delete(name)


class KeyringStore:
    """The identity in the keyring of the system (macOS Keychain, Secret Service, Windows Credential Locker).

    Needs the library `keyring`. Other entries stay in memory: keyrings are for short secrets.

    ```python no-run
    from tailscale.stores import KeyringStore

    async with tailscale.Device("laptop-tool", state=KeyringStore("laptop-tool")) as device:
        print(device.ipv4)
    ```
    """

    forgets_entries = True
    """All but the identity is gone with the process."""

    def __init__(self, name: str, service: str = "pytailscale") -> None:
        self._keyring = optional("keyring", "get_password", "set_password", "delete_password")
        if self._keyring is None:
            raise StateCorrupt("KeyringStore needs the library keyring: pip install keyring")
        self._service, self._name = service, name
        self._others = MemoryStore()

    def __repr__(self) -> str:
        return f"KeyringStore({self._name!r}, {self._service!r})"

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """One Device at a time in this process; keyrings have no locks."""
        return self._others.lock()

    def read(self, name: str) -> bytes | None:
        """The entry, if there is one."""
        if name != DEVICE:
            return self._others.read(name)
        with self._told("read"):
            text: str | None = self._keyring.get_password(self._service, self._name)
        return text.encode() if text is not None else None

    def write(self, name: str, data: bytes) -> None:
        """Replace the entry."""
        if name != DEVICE:
            self._others.write(name, data)
            return
        with self._told("write"):
            self._keyring.set_password(self._service, self._name, data.decode())

    def delete(self, name: str) -> None:
        """Forget the entry."""
        if name != DEVICE:
            self._others.delete(name)
        elif self.read(name) is not None:
            with self._told("write"):
                self._keyring.delete_password(self._service, self._name)

    @contextlib.contextmanager
    def _told(self, deed: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each keyring has errors of its own, and none of them quotes a secret
            raise StateCorrupt(
                f"cannot {deed} {self._name!r} in the keyring: {type(error).__name__}: {error}"
            ) from None


class KubernetesStore:
    """Everything in a Secret of the cluster this process runs in, under the rights of its service account.

    The account needs `get` and `patch` for that Secret, which must exist (it may be empty). Two pods with one Secret
    are noticed: whoever writes second gets `StateLocked`.

    ```python no-run
    from tailscale.stores import KubernetesStore

    async with tailscale.Device("app", state=KubernetesStore("app-tailnet")) as device:
        print(device.ipv4)
    ```
    """

    largest_entry = 128 << 10
    """Of what only saves time: a Secret holds 1 MiB in all."""

    def __init__(self, secret: str, namespace: str = "", *, account: Path = SERVICE_ACCOUNT) -> None:
        host = os.environ.get("KUBERNETES_SERVICE_HOST")
        if not host:
            raise StateCorrupt("KubernetesStore works inside a cluster: KUBERNETES_SERVICE_HOST is not set")
        self._place = host, int(os.environ.get("KUBERNETES_SERVICE_PORT", "443"))
        self._account = account
        self._secret = secret
        self._path = f"/api/v1/namespaces/{namespace or self._account_file('namespace')}/secrets/{secret}"
        self._entries: dict[str, bytes] | None = None
        self._version = ""
        self._held = MemoryStore()
        self._at_work = threading.Lock()

    def __repr__(self) -> str:
        return f"KubernetesStore({self._secret!r})"

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """One Device at a time in this process; another pod is noticed when both write."""
        return self._held.lock()

    def read(self, name: str) -> bytes | None:
        """The entry, if there is one."""
        with self._at_work:
            if self._entries is None:
                self._take(self._ask("GET"))
            assert self._entries is not None
            return self._entries.get(name)

    def write(self, name: str, data: bytes) -> None:
        """Replace the entry, unless somebody else has changed the Secret meanwhile."""
        self._patch(name, base64.b64encode(data).decode())

    def delete(self, name: str) -> None:
        """Forget the entry."""
        self._patch(name, None)

    def _patch(self, name: str, value: str | None) -> None:
        with self._at_work:
            if self._entries is None:
                self._take(self._ask("GET"))
            change = {"metadata": {"resourceVersion": self._version}, "data": {name: value}}
            self._take(self._ask("PATCH", json.dumps(change)))

    def _take(self, answer: Any) -> None:
        try:
            self._version = str(answer["metadata"]["resourceVersion"])
            entries = answer.get("data") or {}
            self._entries = {name: base64.b64decode(text, validate=True) for name, text in entries.items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._corrupt("the API's answer is not a Secret") from None

    def _ask(self, method: str, body: str | None = None) -> Any:
        import http.client
        import ssl

        headers = {
            "Authorization": f"Bearer {self._account_file('token')}",  # read each time: the cluster replaces it
            "Content-Type": "application/merge-patch+json",
            "Accept": "application/json",
        }
        try:
            trust = ssl.create_default_context(cafile=os.fspath(self._account / "ca.crt"))
            connection = http.client.HTTPSConnection(*self._place, timeout=PATIENCE, context=trust)
            with contextlib.closing(connection):
                connection.request(method, self._path, body, headers)
                answer = connection.getresponse()
                status, text = answer.status, answer.read(LONGEST_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise self._corrupt(f"the cluster's API does not answer: {error or type(error).__name__}") from None
        if status == http.client.CONFLICT:
            raise StateLocked(f"the Kubernetes Secret {self._secret!r}")
        if status != http.client.OK:
            raise self._corrupt(f"the API answers {status} to {method}: {_REMEDIES.get(status, 'see its log')}")
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise self._corrupt("the API's answer is not JSON") from None

    def _account_file(self, name: str) -> str:
        try:
            return (self._account / name).read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise StateCorrupt(
                f"KubernetesStore needs the pod's service account: {self._account / name} cannot be read "
                "(automountServiceAccountToken: true)"
            ) from None

    def _corrupt(self, reason: str) -> StateCorrupt:
        return StateCorrupt(f"the state in the Kubernetes Secret {self._secret!r} cannot be used: {reason}")


_REMEDIES = {
    401: "the service account's token is not accepted",
    403: "give the service account a Role with get and patch for this Secret",
    404: "create it first: kubectl create secret generic NAME",
}
