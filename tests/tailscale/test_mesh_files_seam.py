"""What a file service is given by the mesh: words between members, requests on its port, and a way to dial it."""

from __future__ import annotations

from typing import Any

import h11
from mesh_scripts import meshes, until_met
from tailnet_scripts import until
from trio.testing import MockClock

from tailscale.mesh import Mesh, MeshPeer
from tailscale.mesh.file_seam import FileRequest
from tailscale.testing import Tailnet


class Files:
    """Remembers what it is told; answers every request with the bytes it got."""

    def __init__(self) -> None:
        self.heard: list[tuple[MeshPeer, str, Any]] = []
        self.asked: list[FileRequest] = []

    def hear(self, peer: MeshPeer, word: str, payload: Any) -> None:
        self.heard.append((peer, word, payload))
        if word == "broken":
            raise ValueError("this service makes mistakes")

    def knows(self, ticket: str) -> bool:
        return ticket == "secret"

    async def answer(self, request: FileRequest) -> None:
        self.asked.append(request)
        wire, body = request.wire, b""
        while isinstance(event := await wire.next_event(10), h11.Data):
            body += event.data
        for part in (
            h11.Response(status_code=200, headers=[("content-length", str(len(body)))]),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            await wire.write(wire.http.send(part) or b"")

    push = pull = None  # nothing is begun here


async def test_words_pass_between_file_services(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    files = Files(), Files()
    a, b = Mesh(await tailnet.device("a"), "notes"), Mesh(await tailnet.device("b"), "notes")
    a.carry_files(files[0])
    b.carry_files(files[1])
    async with a, b:
        await until_met(a, 1)
        peer = await a.peer("b", timeout=5)
        assert peer.features == {"ack", "bin", "files", "store"}
        await a.line_of(peer).say(peer, "offer", {"token": 1}, timeout=5)
        await a.line_of(peer).say(peer, "broken", None, timeout=5)
        assert [(p.id, word, payload) for p, word, payload in files[1].heard] == [
            (a.id, "offer", {"token": 1}),
            (a.id, "broken", None),
        ]
        back = files[1].heard[0][0]
        await b.line_of(back).say(back, "accept", {"token": 1}, timeout=5)
        assert files[0].heard[0][1:] == ("accept", {"token": 1})
        assert b.drops["mesh.failed_word"] == 1


async def test_requests_reach_the_service_that_knows_the_ticket(autojump_clock: MockClock, tailnet: Tailnet) -> None:
    files = Files()
    async with meshes(tailnet, "a") as (a,):
        b = Mesh(await tailnet.device("b"), "notes")
        b.carry_files(files)
        async with b:
            peer = await a.peer("b", timeout=5)
            async with await a.line_of(peer).connect_port(timeout=5) as stream:
                for body in (b"hello", b"again"):
                    head = b"PUT /f/secret/3 HTTP/1.1\r\nhost: b\r\ncontent-length: 5\r\n\r\n"
                    await stream.send_all(head + body)
                    answer = b""
                    while not answer.endswith(body):
                        answer += await stream.receive_some()
                    assert answer.startswith(b"HTTP/1.1 200")
                await stream.send_all(b"PUT /f/guessed/3 HTTP/1.1\r\nhost: b\r\ncontent-length: 0\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 404")
            await until(lambda: len(files.asked) == 2)
            assert {(r.caller.hostname, r.method, r.ticket, r.number) for r in files.asked} == {
                ("a", "PUT", "secret", "3")
            }
