"""Stores without a disk: the environment, a keyring, a Kubernetes Secret behind an API that behaves as documented."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from types import ModuleType
from typing import Any

import pytest
import trustme

import tailscale
from tailscale.state_file import DEVICE, NamedStore, encode_state
from tailscale.stores import EnvironmentStore, KeyringStore, KubernetesStore
from tailscale.testing import Tailnet

STATE = encode_state(tailscale.state_file.State.generate(bytes))


# --- the environment ------------------------------------------------------------------------------


def test_environment_gives_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_STATE", STATE.decode())
    store = EnvironmentStore()
    assert store.read(DEVICE) == STATE
    store.write("relays", b"{}")
    assert store.read("relays") == b"{}"
    store.delete("relays")
    assert store.read("relays") is None
    with store.lock(), pytest.raises(tailscale.StateLocked), store.lock():
        pass
    monkeypatch.delenv("TS_STATE")
    assert EnvironmentStore().read(DEVICE) is None


def test_environment_that_is_no_state_is_refused_without_quoting_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_STATE", '{"secret": "privkey:1234"}')
    with pytest.raises(tailscale.StateCorrupt, match=r"\$TS_STATE") as caught:
        EnvironmentStore()
    assert "1234" not in str(caught.value)


# --- a keyring ------------------------------------------------------------------------------------


class Keyring(ModuleType):
    def __init__(self) -> None:
        super().__init__("keyring")
        self.kept: dict[tuple[str, str], str] = {}
        self.is_locked = False

    def get_password(self, service: str, name: str) -> str | None:
        if self.is_locked:
            raise RuntimeError("the keyring is locked")
        return self.kept.get((service, name))

    def set_password(self, service: str, name: str, password: str) -> None:
        self.kept[service, name] = password

    def delete_password(self, service: str, name: str) -> None:
        del self.kept[service, name]


def test_keyring_keeps_the_identity_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = Keyring()
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    store = KeyringStore("tool")
    assert store.read(DEVICE) is None
    store.write(DEVICE, STATE)
    store.write("relays", b"{}")
    assert (store.read(DEVICE), store.read("relays")) == (STATE, b"{}")
    assert keyring.kept == {("pytailscale", "tool"): STATE.decode()}
    store.delete(DEVICE)
    store.delete(DEVICE)
    assert keyring.kept == {}
    keyring.is_locked = True
    with pytest.raises(tailscale.StateCorrupt, match="RuntimeError: the keyring is locked"):
        store.read(DEVICE)


def test_keyring_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(tailscale.StateCorrupt, match="pip install keyring"):
        KeyringStore("tool")


# --- a Kubernetes Secret --------------------------------------------------------------------------


class Cluster:
    """One Secret behind TLS, with the API's rules: a bearer token, merge patches, and versions that must agree."""

    def __init__(self) -> None:
        self.data: dict[str, str] = {}
        self.version = 7
        self.answer: tuple[int, bytes] | None = None  # instead of the right one
        self.asked: list[str] = []

    def reply(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, bytes]:
        self.asked.append(f"{method} {path}")
        if self.answer is not None:
            return self.answer
        if headers["Authorization"] != "Bearer token-1":
            return 401, b"{}"
        if path != "/api/v1/namespaces/apps/secrets/app-tailnet":
            return 404, b"{}"
        if method == "PATCH":
            assert headers["Content-Type"] == "application/merge-patch+json"
            change = json.loads(body)
            if change["metadata"]["resourceVersion"] != str(self.version):
                return 409, b"{}"
            self.version += 1
            for name, text in change["data"].items():
                self.data.pop(name, None)
                if text is not None:
                    self.data[name] = text
        secret = {"metadata": {"resourceVersion": str(self.version)}, "data": self.data or None}
        return 200, json.dumps(secret).encode()


@contextmanager
def serving(cluster: Cluster, folder: Path) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text = cluster.reply(self.command, self.path, self.headers, body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PATCH = handle_one

        def log_message(self, *_: object) -> None: ...

    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    context = SSLContext(PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    (tmp_path / "token").write_text("token-1\n")
    (tmp_path / "namespace").write_text("apps")
    cluster = Cluster()
    with serving(cluster, tmp_path) as port:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        yield cluster


def test_secret_keeps_every_entry(cluster: Cluster, tmp_path: Path) -> None:
    store: NamedStore = KubernetesStore("app-tailnet", account=tmp_path)
    assert store.read(DEVICE) is None
    store.write(DEVICE, STATE)
    store.write("relays", b"{}")
    assert base64.b64decode(cluster.data[DEVICE]) == STATE
    store.delete("relays")
    again = KubernetesStore("app-tailnet", account=tmp_path)
    assert (again.read(DEVICE), again.read("relays")) == (STATE, None)
    assert [asked.partition(" ")[0] for asked in cluster.asked] == ["GET", "PATCH", "PATCH", "PATCH", "GET"]


def test_second_pod_that_writes_is_noticed(cluster: Cluster, tmp_path: Path) -> None:
    first, second = (KubernetesStore("app-tailnet", account=tmp_path) for _ in range(2))
    first.read(DEVICE), second.read(DEVICE)
    first.write(DEVICE, STATE)
    with pytest.raises(tailscale.StateLocked, match="app-tailnet"):
        second.write(DEVICE, STATE)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((403, b"{}"), "a Role with get and patch"),
        ((404, b"{}"), "create it first"),
        ((500, b"oops"), "answers 500"),
        ((200, b"<html>"), "is not JSON"),
        ((200, b"[" * 100_000), "is not JSON"),
        ((200, b"[]"), "is not a Secret"),
        ((200, b'{"metadata":{"resourceVersion":"1"},"data":{"device":"%%%"}}'), "is not a Secret"),
    ],
)
def test_answer_that_is_no_secret_is_a_sentence(
    cluster: Cluster, tmp_path: Path, answer: tuple[int, bytes], why: str
) -> None:
    cluster.answer = answer
    with pytest.raises(tailscale.StateCorrupt, match=why) as caught:
        KubernetesStore("app-tailnet", account=tmp_path).read(DEVICE)
    assert "token-1" not in str(caught.value)


def test_store_outside_a_cluster_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(tailscale.StateCorrupt, match="KUBERNETES_SERVICE_HOST"):
        KubernetesStore("app-tailnet")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    with pytest.raises(tailscale.StateCorrupt, match="automountServiceAccountToken"):
        KubernetesStore("app-tailnet", account=tmp_path)


def test_cluster_that_does_not_answer_is_a_sentence(cluster: Cluster, tmp_path: Path) -> None:
    store = KubernetesStore("app-tailnet", account=tmp_path)
    (tmp_path / "ca.crt").write_bytes(trustme.CA().cert_pem.bytes())
    with pytest.raises(tailscale.StateCorrupt, match=r"does not answer: .*CERTIFICATE_VERIFY_FAILED"):
        store.read(DEVICE)


async def test_device_comes_back_from_what_a_store_kept(tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch) -> None:
    """In real time: a store other than memory is written in a thread, which a mock clock would run away from."""
    keyring = Keyring()
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    seen = []
    for key in (tailnet.auth_key(), ""):
        async with tailnet.device("tool", state=KeyringStore("tool"), auth_key=key) as device:
            seen.append((device.node.stable_id, device.ipv4))
    assert seen[0] == seen[1]
    monkeypatch.setenv("TS_STATE", next(iter(keyring.kept.values())))
    async with tailnet.device("tool", state=EnvironmentStore(), ephemeral=False, auth_key="") as device:
        assert (device.node.stable_id, device.ipv4) == seen[0]
