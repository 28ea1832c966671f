"""Apps of real frameworks for `test_web_real.py`. Each answers with what it knows of its caller, as JSON.

`mirror` of an ASGI scope, `mirror_of` of a WSGI environ: the identity, and every trace of what a client forged.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request  # whose annotations are looked up here

EVIL = "root@evil"
FORGED = [
    ("Tailscale-User-Login", EVIL),
    ("tailscale-user-login", EVIL),
    ("tailscale_user_login", EVIL),
    ("TAILSCALE_USER-LOGIN", EVIL),
    ("Tailscale-User-Name", EVIL),
    ("Tailscale_Headers_Info", EVIL),
]
FORWARDED = [("X-Forwarded-For", "100.64.0.1"), ("X-Forwarded-User", EVIL), ("Forwarded", "for=100.64.0.1")]


def mirror(scope: Any) -> dict[str, Any]:
    caller = scope["extensions"].get("tailscale") or {}
    logins = [value.decode() for name, value in scope["headers"] if name == b"tailscale-user-login"]
    return {
        "node": caller.get("hostname"),
        "user": caller.get("user"),
        "logins": logins,
        "evil": EVIL in repr([value for name, value in scope["headers"] if b"tailscale" in name.lower()]),
    }


def mirror_of(environ: Any) -> dict[str, Any]:
    login = environ.get("HTTP_TAILSCALE_USER_LOGIN")
    return {
        "node": environ.get("tailscale.hostname"),
        "user": environ.get("tailscale.user"),
        "logins": [login] if login is not None else [],
        "evil": EVIL in repr([value for key, value in environ.items() if "TAILSCALE" in key.upper()]),
    }


def plain_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(mirror_of(environ)).encode()]


def flask_app() -> Any:
    import flask

    app = flask.Flask("interop")

    @app.get("/")
    def who() -> Any:
        return mirror_of(flask.request.environ)

    @app.post("/upload")
    def upload() -> Any:
        return {"size": len(flask.request.get_data())}

    @app.get("/stream")
    def stream() -> Any:
        return flask.Response((b"x" * 1000 for _ in range(1000)), mimetype="application/octet-stream")

    @app.get("/bad")
    def bad() -> Any:
        raise ValueError("in a view")

    return app


def starlette_app() -> Any:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Route, WebSocketRoute

    async def who(request: Any) -> Any:
        await asyncio.sleep(0)
        return JSONResponse(mirror(request.scope))

    async def chat(socket: Any) -> None:
        await socket.accept()
        await socket.send_json(mirror(socket.scope))
        await socket.close()

    return Starlette(routes=[Route("/", who), WebSocketRoute("/ws", chat)])


async def _django_who(request: Any) -> Any:
    from django.http import JsonResponse

    await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))
    return JsonResponse(mirror_of({"tailscale.hostname": None} | request.META) | _django_scope(request))


def _django_sync(request: Any) -> Any:
    from django.http import JsonResponse

    return JsonResponse(mirror_of(request.META) | _django_scope(request))


def _django_scope(request: Any) -> dict[str, Any]:
    caller = getattr(request, "scope", {}).get("extensions", {}).get("tailscale")
    return {"node": caller["hostname"], "user": caller["user"]} if caller else {}


def _django_upload(request: Any) -> Any:
    from django.http import JsonResponse

    return JsonResponse({"size": len(request.body)})


def _django_stream(request: Any) -> Any:
    from django.http import StreamingHttpResponse

    if request.META.get("wsgi.version"):
        return StreamingHttpResponse(b"x" * 1000 for _ in range(1000))

    async def pieces() -> Any:
        for _ in range(1000):
            yield b"x" * 1000

    return StreamingHttpResponse(pieces())


def _django_bad(request: Any) -> Any:
    raise ValueError("in a view")


def configure_django() -> None:
    from django.conf import settings

    if settings.configured:
        return
    settings.configure(
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["*"],
        SECRET_KEY="interop",
        LOGGING_CONFIG=None,
        DATA_UPLOAD_MAX_MEMORY_SIZE=None,
    )
    import django
    from django.urls import path

    views = {
        "": _django_who,
        "sync": _django_sync,
        "upload": _django_upload,
        "stream": _django_stream,
        "bad": _django_bad,
    }
    vars(sys.modules[__name__])["urlpatterns"] = [path(name, view) for name, view in views.items()]
    django.setup()


def django_asgi() -> Any:
    configure_django()
    from django.core.asgi import get_asgi_application

    return get_asgi_application()


def django_wsgi() -> Any:
    configure_django()
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()


def quart_app() -> Any:
    import quart

    app = quart.Quart("interop")
    begun: list[int] = []

    @app.before_serving
    async def begin() -> None:
        begun.append(id(asyncio.get_running_loop()))

    @app.get("/")
    async def who() -> Any:
        assert begun == [id(asyncio.get_running_loop())]
        return mirror(quart.request.scope)

    @app.post("/upload")
    async def upload() -> Any:
        return {"size": len(await quart.request.get_data())}

    @app.get("/stream")
    async def stream() -> Any:
        async def pieces() -> Any:
            for _ in range(1000):
                yield b"x" * 1000

        return pieces()

    @app.get("/bad")
    async def bad() -> Any:
        raise ValueError("in a view")

    @app.websocket("/ws")
    async def chat() -> None:
        await quart.websocket.send_json(mirror(quart.websocket.scope))

    return app


def fastapi_app(dsn: str) -> Any:
    """A pool of asyncpg's, or without a server a database of aiosqlite's, that lives as long as the app."""

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        if dsn:
            import asyncpg

            async with asyncpg.create_pool(dsn, min_size=2) as pool:
                yield {"ask": pool.fetchval}
            return
        import aiosqlite

        async with aiosqlite.connect(":memory:") as database:

            async def ask(query: str) -> Any:
                async with database.execute(query) as cursor:
                    row = await cursor.fetchone()
                    return row[0] if row else None

            yield {"ask": ask}

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def who(request: Request) -> Any:
        return mirror(request.scope) | {"sum": await request.state.ask("select 40 + 2")}

    @app.post("/upload")
    async def upload(request: Request) -> Any:
        return {"size": len(await request.body())}

    @app.get("/bad")
    async def bad() -> Any:
        raise ValueError("in a view")

    return app


def gunicorn_wsgi(environ: Any, start_response: Any) -> Any:
    """What gunicorn's workers import: plain, with the address it was told."""
    start_response("200 OK", [("Content-Type", "application/json")])
    told = {"remote": environ["REMOTE_ADDR"], "forwarded": environ.get("HTTP_X_FORWARDED_FOR")}
    return [json.dumps(mirror_of(environ) | told).encode()]
