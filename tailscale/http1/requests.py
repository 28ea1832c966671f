"""The next request of a connection, whoever serves it: waited for, read whole, refused if not to be believed.

Shared by the server on the tailnet and by those on sockets of this machine. Knows no app.
"""

from __future__ import annotations

import h11
import trio

from tailscale.http1 import framing
from tailscale.http1.asgi import Headers
from tailscale.http1.heads import refusal_of
from tailscale.http1.wire import Wire


async def next_request(wire: Wire, idle: set[trio.CancelScope]) -> h11.Request | None:
    """The head of the next request; None when there is none to come.

    While nothing of it has arrived, a scope is in `idle`: whoever cancels that one gets None.
    """
    wire.begin_head()
    try:
        if not wire.has_input:
            with trio.CancelScope(deadline=trio.current_time() + wire.limits.idle_timeout) as waiting:
                idle.add(waiting)
                try:
                    wire.feed(await wire.read_some())
                finally:
                    idle.discard(waiting)
            if waiting.cancelled_caught:
                return None
        with trio.fail_after(wire.limits.head_timeout):
            event = await wire.next_event(wire.limits.head_timeout)
        if not isinstance(event, h11.Request):
            return None
        head = wire.take_head()
        # h11 bounds a head that is not whole: one that comes in a single piece it takes, however long.
        too_long = (431, f"a request head has at most {wire.limits.head} bytes")
        refusal = too_long if len(head) > wire.limits.head else refusal_of(event, head)
        if refusal is None:
            return event
        await wire.refuse(*refusal, has_body=event.method != b"HEAD")
    except h11.RemoteProtocolError as error:
        await wire.refuse(error.error_status_hint, str(error))
    except (trio.TooSlowError, TimeoutError):
        await wire.refuse(408, "the request took too long to arrive")
    await wire.finish()
    return None


def headers_of(request: h11.Request, target: framing.Target) -> Headers:
    """With the host that the request line names, if it names one: that one counts (RFC 9112, 3.2.2)."""
    headers = [(bytes(name), bytes(value)) for name, value in request.headers]
    if not target.authority:
        return headers
    return [(b"host", target.authority), *((name, value) for name, value in headers if name != b"host")]
