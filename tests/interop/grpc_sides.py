"""Both ends of gRPC for test_http2_real.py, by grpcio, each in a process of its own: it does not bear others' forks.

python grpc_sides.py serve                      # prints its port; ends with its standard input
python grpc_sides.py ask PORT ROOT.PEM NAME     # prints how each line of the script went, as JSON
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

UNBOUNDED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
BIG = bytes(range(256)) * (8 << 12)  # 8 MiB
PATIENCE = 20.0


class Service:
    """Every kind of call there is, over bytes."""

    def __init__(self) -> None:
        self.was_cancelled = threading.Event()
        self.told: dict[str, str] = {}

    def turn(self, request: bytes, context: Any) -> bytes:
        self.told = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"),))
        return request[::-1]

    def refuse(self, request: bytes, context: Any) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, "there is none, für niemanden")
        raise AssertionError("abort raises")

    def count(self, request: bytes, context: Any) -> Iterator[bytes]:
        return (b"%d" % number for number in range(int(request)))

    def add(self, requests: Iterator[bytes], context: Any) -> bytes:
        return b"%d" % sum(map(len, requests))

    def shout(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        return (request.upper() for request in requests)

    def wait(self, request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(self.was_cancelled.set)
        yield b"first"
        self.was_cancelled.wait(PATIENCE)

    def report(self, request: bytes, context: Any) -> bytes:
        """Which metadata came with the last turn, and whether a wait was given up since this was last asked."""
        cancelled = self.was_cancelled.wait(PATIENCE)
        self.was_cancelled.clear()
        return json.dumps({"told": self.told, "cancelled": cancelled}).encode()

    def run(self) -> None:
        server = grpc.server(ThreadPoolExecutor(8), options=UNBOUNDED)
        handlers = {
            "Turn": grpc.unary_unary_rpc_method_handler(self.turn),
            "Refuse": grpc.unary_unary_rpc_method_handler(self.refuse),
            "Count": grpc.unary_stream_rpc_method_handler(self.count),
            "Add": grpc.stream_unary_rpc_method_handler(self.add),
            "Shout": grpc.stream_stream_rpc_method_handler(self.shout),
            "Wait": grpc.unary_stream_rpc_method_handler(self.wait),
            "Report": grpc.unary_unary_rpc_method_handler(self.report),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("of.Tests", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        print(port, flush=True)
        sys.stdin.read()
        server.stop(None).wait(PATIENCE)


def failure(call: Callable[[], object]) -> tuple[str, str]:
    try:
        call()
    except grpc.RpcError as failed:
        code = failed.code().name
        return code, failed.details() if code != "DEADLINE_EXCEEDED" else ""  # that one says where it waited
    return "OK", ""


def conversation(port: int, root: bytes, name: str) -> dict[str, object]:
    """One script, and how each line of it went."""
    options = [*UNBOUNDED, ("grpc.ssl_target_name_override", name), ("grpc.default_authority", name)]
    with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(root), options) as channel:
        at = "/of.Tests/"
        turned, call = channel.unary_unary(at + "Turn").with_call(b"hello", timeout=PATIENCE)
        first = {entry.key: entry.value for entry in call.initial_metadata() if entry.key != "date"}
        last = {entry.key: entry.value for entry in call.trailing_metadata()}
        went: dict[str, object] = {"turn": (turned.decode(), first, last)}
        went["big"] = channel.unary_unary(at + "Turn")(BIG, timeout=PATIENCE) == BIG[::-1]
        went["refused"] = failure(lambda: channel.unary_unary(at + "Refuse")(b"", timeout=PATIENCE))
        went["unknown"] = failure(lambda: channel.unary_unary(at + "Nothing")(b"", timeout=PATIENCE))
        went["counted"] = len(list(channel.unary_stream(at + "Count")(b"1000", timeout=PATIENCE)))
        added = channel.stream_unary(at + "Add")((bytes(1000) for _ in range(500)), timeout=PATIENCE)
        went["added"] = added.decode()
        words = (b"word %d" % number for number in range(20))
        shouted = channel.stream_stream(at + "Shout")(words, timeout=PATIENCE)
        went["shouted"] = [word.decode() for word in shouted]
        went["late"] = failure(lambda: list(channel.unary_stream(at + "Wait")(b"", timeout=0.5)))
        report = json.loads(channel.unary_unary(at + "Report")(b"", timeout=PATIENCE))
        went["late is cancelled"] = report["cancelled"]
        went["told"] = sorted(name for name in report["told"] if name != "user-agent")
        waiting = channel.unary_stream(at + "Wait")(b"", timeout=PATIENCE)
        next(waiting)
        waiting.cancel()
        went["cancelled"] = json.loads(channel.unary_unary(at + "Report")(b"", timeout=PATIENCE))["cancelled"]
        calls = [channel.unary_unary(at + "Turn").future(b"%d" % number, timeout=PATIENCE) for number in range(60)]
        went["at once"] = [call.result() for call in calls] == [(b"%d" % number)[::-1] for number in range(60)]
        return went


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        Service().run()
    else:
        print(json.dumps(conversation(int(sys.argv[2]), Path(sys.argv[3]).read_bytes(), sys.argv[4])))
