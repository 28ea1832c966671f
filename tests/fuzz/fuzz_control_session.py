"""The login policy under any story control, the user and the network may tell: a step is always there, in bounds.

Each byte is one event. No exception, no registration storm, no key used before it was announced for saving.
"""

from __future__ import annotations

import math
import random

from ts_base.keys import MachinePrivate, NodePrivate
from ts_control.errors import RequestRefused
from ts_control.session import ControlMachine, Credentials, CredentialsChanged, Phase, Poll, Register, Wait
from ts_control.wire import Hostinfo, Node
from ts_control.wire_register import RegisterResponse

WALL = 1.9e9
MACHINE, NODE = MachinePrivate.generate(bytes(range(32))), NodePrivate.generate(bytes(range(1, 33)))
RESPONSES = [
    RegisterResponse(machine_authorized=True),
    RegisterResponse(),
    RegisterResponse(auth_url="https://c/a/1"),
    RegisterResponse(node_key_expired=True),
    RegisterResponse(error="no such key"),
    RegisterResponse(error="tags", auth_url="https://c/a/2", node_key_expired=True),
]
REFUSALS = [(429, "5"), (429, "x"), (404, ""), (400, ""), (500, ""), (429, "9" * 40), (503, "-1")]
WAITS = [0.0, 0.01, 0.5, 2.0, 30.0, 700.0]
MOST_STEPS = 300


def fuzz_one(data: bytes) -> None:
    first = data[0] if data else 0
    session = ControlMachine(
        Credentials(MACHINE, NODE, is_registered=bool(first & 1)),
        Hostinfo(hostname="py", request_tags=("tag:a",) if first & 2 else ()),
        entropy=random.Random(1).randbytes,
        wall_clock=lambda: WALL,
        auth_key="key" if first & 4 else None,
    )
    now, attempts, saved = 0.0, 0, NODE.public
    for code in data[1:MOST_STEPS]:
        action, detail = code & 7, code >> 3
        step = session.next_step(now)
        if isinstance(step, Wait) and action < 5:
            assert step.until > now
            if step.until == math.inf:
                assert session.phase is Phase.LOGGED_OUT
                session.login(now)
                continue
            now = step.until
            step = session.next_step(now)
        if isinstance(step, Register):
            attempts += 1
            session.register_request()
        _happens(session, step, action, detail, now)
        now += WAITS[detail % len(WAITS)] if action == 7 else 0.001
        for message in session.take_messages():
            if isinstance(message, CredentialsChanged):
                saved = message.credentials.node.public
        assert session.node_key.public == saved
        assert attempts <= 2 * len(data) + 10
        repr(session)


def _happens(session: ControlMachine, step: object, action: int, detail: int, now: float) -> None:
    if action <= 1 and isinstance(step, Register):
        session.on_registered(RESPONSES[detail % len(RESPONSES)], now)
    elif action <= 1 and isinstance(step, Poll):
        session.on_self(Node(id=1, expired=bool(detail & 1), machine_authorized=bool(detail & 2)))
    elif action == 2:
        status, retry_after = REFUSALS[detail % len(REFUSALS)]
        session.on_refused(RequestRefused("a registration", status, "said so", retry_after), now)
    elif action == 3:
        session.on_lost("cut", now)
    elif action == 4:
        session.retry_now(now)
    elif action == 5 and detail & 1:
        session.login(now, "other" if detail & 2 else None)
    elif action == 6 and detail == 31:
        session.on_logged_out()


def seeds() -> list[bytes]:
    register, poll, lost, login = 0, 1, 3, 5 | 8
    return [
        bytes([4, register, poll | 16, poll | 16, lost, register, poll | 16]),
        bytes([1, poll | 16, poll | 8, register, poll | 16]),
        bytes([0, register | 16, 7 | 32, register, poll | 16, login, register]),
        bytes([6, register | 32, register, poll | 16, 2, 2 | 16, register, 6 | 248, login, register]),
    ]
