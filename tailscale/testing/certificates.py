"""An ACME server for a test tailnet, on a virtual or a real stream: HTTPS with real certificates and no internet.

Owns the records of the tailnet's own DNS, which control writes, and the certificate authority that reads them. What is
said and decided is `ts_acme.server`'s.
"""

from __future__ import annotations

import ssl
from collections import deque
from typing import TYPE_CHECKING

import trio

from tailscale.testing.http_front import Answer, Request, Upgrade, serve_http
from tailscale.testing.servers import Running
from tailscale.testing.worlds import Place, VirtualPlace
from ts_acme.server import AcmeServer, Refused

if TYPE_CHECKING:
    from tailscale.certificates.control import ControlCertificates

ACME, ACME_PORT = "acme", 80
DEFAULT_LIFETIME = 90 * 86_400.0
MOST_RECORDS = 8  # of one name: the oldest are forgotten
MOST_NAMES = 1024
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: certificates of a virtual clock are seldom valid by the machine's


class Certificates(Running):
    """The authority of a Tailnet. `server` is the machine itself."""

    def __init__(self, place: Place, nursery: trio.Nursery, lifetime: float) -> None:
        super().__init__(place, ACME, ACME_PORT if isinstance(place, VirtualPlace) else 0)
        self._nursery = nursery
        self._lifetime = lifetime
        self._is_virtual = isinstance(place, VirtualPlace)
        self._records: dict[str, deque[str]] = {}
        self._server: AcmeServer | None = None

    @property
    def server(self) -> AcmeServer:
        """The machine: its own address is known once it listens."""
        if self._server is None:
            raise RuntimeError("the Tailnet is not running: use it inside `async with`")
        return self._server

    @property
    def directory(self) -> str:
        """The address that ACME clients are given."""
        return f"{self.server.url}/dir"

    @property
    def root_pem(self) -> bytes:
        """The certificate that clients have to trust: for a file, `$SSL_CERT_FILE`, `curl --cacert`."""
        return self.server.authority.root_pem

    @property
    def source(self) -> ControlCertificates:
        """For `Device(certificates=...)`; devices of `Tailnet.device` have it."""
        from tailscale.certificates.control import ControlCertificates

        return ControlCertificates(self.directory)

    def client_context(self) -> ssl.SSLContext:
        """For clients: trusts this authority, and on a virtual clock does not look at the machine's.

        ```python
        async with tailscale.testing.Tailnet(certificates=True) as net:
            context = net.certificates.client_context()  # for trio.SSLStream, httpx.Client(verify=...) and so on
        ```
        """
        context = ssl.create_default_context(cadata=self.root_pem.decode())
        if self._is_virtual:
            context.verify_flags |= NO_CHECK_TIME
        return context

    def renew_now(self) -> None:
        """Ask for every certificate to be replaced, by renewal information: devices hear it when they look again."""
        self.server.renew_now()

    def refuse(self, kind: str = "rateLimited", retry_after: float | None = 3600.0) -> None:
        """Answer every order so from now on, in the words of RFC 8555 section 6.7; `accept` ends it."""
        status = 429 if kind == "rateLimited" else 403
        self.server.refuse_orders(Refused(kind, "a test said so", status, retry_after))

    def accept(self) -> None:
        """Take orders again."""
        self.server.refuse_orders(None)

    def publish(self, name: str, value: str) -> None:
        """What control does for devices: one more TXT record of a name."""
        self._records.setdefault(name, deque(maxlen=MOST_RECORDS)).append(value)
        while len(self._records) > MOST_NAMES:
            del self._records[next(iter(self._records))]

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners, self.port = await self._place.listen(ACME, self.port)
        if self._server is None:
            self._server = AcmeServer(
                url=f"http://{self._place.address(ACME)}:{self.port}",
                records=lambda name: self._records.get(name, ()),
                entropy=self._place.entropy,
                wall_clock=self._place.wall_clock,
                lifetime=self._lifetime,
            )
        task_status.started()
        await trio.serve_listeners(self._serve_stream, listeners)

    async def _serve_stream(self, stream: trio.abc.Stream) -> None:
        await serve_http(stream, self._route)

    def _route(self, request: Request) -> Answer | Upgrade:
        reply = self.server.answer(request.method, request.path, request.body)
        headers = {name: value for name, value in reply.headers.items() if name != "content-type"}
        kind = reply.headers.get("content-type", "text/plain")
        return Answer(reply.status, reply.body, kind, tuple(headers.items()))
