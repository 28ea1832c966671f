"""`serve` and `funnel`: publish what runs here, in upstream's words, through the daemon or by this command alone.

Owns how what is typed becomes a change of a ServeConfig, and how one is shown. Without --bg what is published ends with
the command.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tailscale.cli.exit_codes import OK, USAGE
from tailscale.cli.hosted import Hosting, borrow, hosting
from tailscale.cli.pipes import StandardInput
from tailscale.cli.screen import Screen
from tailscale.cli.serve_arguments import OF_SERVICES
from tailscale.cli.session import joined, state_path
from tailscale.daemon.serving import ENTRY
from tailscale.errors import ServiceUnavailable, TailscaleError
from tailscale.serve import BadServeConfig, Serve, proxy, read_target, tcp
from tailscale.serve.config import ServeConfig, clean_mount, handler_of, kind_of
from tailscale.serve.site import service_name
from tailscale.serve.targets import Proxy
from tailscale.state_file import open_store

if TYPE_CHECKING:
    from tailscale.device import Device

HTTPS_PORT = 443
WEB = ("http", "https")
LONGEST_TEXT = 20  # of one that is shown
NEEDS_A_DAEMON = "there is no daemon that could serve it after this command: `pytailscale up` starts one"


async def serve(options: argparse.Namespace, screen: Screen) -> int:
    verb, *rest = options.what
    if verb == "status" and not rest:
        return await _status(options, screen)
    if verb == "reset" and not rest:
        return await _reset(screen)
    if verb == "set-raw" and not rest:
        return await _set(ServeConfig.read(await _read_input()))
    if verb == "get-config" and len(rest) < 2:
        return await _get_config(rest, screen)
    if verb == "set-config" and len(rest) == 1:
        return await _set(ServeConfig.read(await trio.Path(_directory(), rest[0]).read_bytes()))
    if verb in OF_SERVICES and len(rest) == 1 and not options.funnel:
        return await _change_service(verb, rest[0], screen)
    if verb == "off" and not rest:
        return await _off(options, screen)
    if rest == ["off"]:
        return await _off(options, screen)
    if rest:
        verb = options.command
        screen.note(("pytailscale: ", "bold red"), f"{verb} takes one target, and `off` after it to end it")
        return USAGE
    target = str(Path(_directory(), verb)) if verb.startswith(".") else verb
    return await _publish(target, options, screen)


def kind_and_port(options: argparse.Namespace) -> tuple[str, int]:
    """How it is served, and at which port: HTTPS at 443 where nothing is said."""
    for kind in ("http", "https", "tcp", "tls_terminated_tcp"):
        port = getattr(options, kind)
        if port is not None:
            return kind.replace("_", "-"), port
    return "https", HTTPS_PORT


def add(config: ServeConfig, host: str, target: str, options: argparse.Namespace) -> None:
    """What was typed, in a config. Raises ValueError."""
    kind, port = kind_and_port(options)
    if kind in WEB:
        if options.proxy_protocol:
            raise BadServeConfig("--proxy-protocol is of TCP: web servers are told by headers who calls")
        found = read_target(target)
        if options.accept_app_caps and isinstance(found, Proxy):
            found = proxy(found.to, accept_caps=options.accept_app_caps)
        mount = clean_mount(options.set_path, found)
        config.set_web(host, port, mount, handler_of(found), tls=kind == "https")
        config.set_funnel(host, port, options.funnel)
        return
    if options.set_path != "/":
        raise BadServeConfig("--set-path is of web servers: TCP has no paths")
    to = tcp(target, tls=kind == "tls-terminated-tcp", proxy_protocol=options.proxy_protocol)
    config.set_tcp(port, to.to, sni=host if to.tls else "", proxy_protocol=to.proxy_protocol)
    config.set_funnel(host, port, options.funnel)


async def _certified(device: Device, options: argparse.Namespace, screen: Screen) -> Device:
    """The device, once it may be published and has a certificate where it needs one: what is missing is told now."""
    if options.service and not device.node.tags:
        raise ServiceUnavailable(f"{options.service} cannot be hosted by this device, which has no tags: up --tags")
    if options.funnel:
        device.check_funnel(device.name, kind_and_port(options)[1])
    # Control allows a certificate for a service's name once this device hosts it: that comes with the first visitor.
    if kind_and_port(options)[0] in ("https", "tls-terminated-tcp") and not options.service:
        screen.show("waiting for a certificate")
        await device.certificate()
        screen.hide()
    return device


async def _publish(target: str, options: argparse.Namespace, screen: Screen) -> int:
    host = hosting()
    if host is None:
        if options.bg or options.service:
            raise TailscaleError(NEEDS_A_DAEMON)
        async with joined(options, screen) as device:
            return await _publish_alone(await _certified(device, options, screen), target, options, screen)
    device = await _certified(await borrow(host, options, screen), options, screen)
    serving = host.served_by.serving
    if options.bg or options.service:
        config = serving.config
        part = config.service(options.service) if options.service else config
        add(part, _host(device, options), target, options)
        serving.set(config)
        if options.service:
            serving.advertise({*serving.advertised, options.service})
        _tell(part, options, screen)
        screen.note(("in the background; to end it: ", "dim"), f"pytailscale {options.command} {_flag(options)} off")
        return OK
    taken_away = trio.Event()
    with serving.session(taken_away.set) as session:
        config = serving.config
        part = config.foreground(session)
        add(part, _name(device), target, options)
        serving.set(config)
        _tell(part, options, screen)
        screen.note(("until Ctrl-C", "dim"))
        await taken_away.wait()
    screen.note("somebody else has ended it")
    return OK


async def _publish_alone(device: Device, target: str, options: argparse.Namespace, screen: Screen) -> int:
    config = ServeConfig()
    add(config, _name(device), target, options)
    async with trio.open_nursery() as nursery:
        await nursery.start(Serve(device).use(config).run)
        _tell(config, options, screen)
        screen.note(("until Ctrl-C", "dim"))
    return OK


def _tell(config: ServeConfig, options: argparse.Namespace, screen: Screen) -> None:
    screen.note(("available on the internet:" if options.funnel else "available within your tailnet:", "bold"))
    for line in lines_of(config, only=kind_and_port(options)[1]):
        screen.say(line)


def _flag(options: argparse.Namespace) -> str:
    kind, port = kind_and_port(options)
    path = f" --set-path={options.set_path}" if options.set_path != "/" else ""
    service = f"--service={options.service} " if options.service else ""
    return f"{service}--{kind}={port}{path}"


def _name(device: Device) -> str:
    return device.name.rstrip(".")


def _host(device: Device, options: argparse.Namespace) -> str:
    """By which name it is asked for."""
    return service_name(options.service, _name(device)) if options.service else _name(device)


async def _change_service(verb: str, name: str, screen: Screen) -> int:
    """Nobody new is sent here, or again somebody; or it is served no more."""
    await trio.lowlevel.checkpoint()
    serving = _in_daemon().served_by.serving
    config = serving.config
    if name not in config.services():
        known = ", ".join(config.services()) or "none"
        raise BadServeConfig(f"{name} is not served here: of services there is {known}")
    if verb == "clear":
        config.remove_service(name)
        serving.set(config)
    elif verb == "drain":
        serving.advertise(set(serving.advertised) - {name})
        screen.note(f"{name} gets nobody new; to end that: ", f"pytailscale serve advertise {name}")
    else:
        serving.advertise({*serving.advertised, name})
    return OK


async def _off(options: argparse.Namespace, screen: Screen) -> int:
    host = _in_daemon()
    device = await borrow(host, options, screen)
    config = host.served_by.serving.config
    part = config.service(options.service) if options.service else config
    kind, port = kind_and_port(options)
    if kind in WEB:
        mount = None if options.set_path == "/" and len(options.what) == 1 else clean_mount(options.set_path)
        had = part.remove_web(_host(device, options), port, mount)
    else:
        had = part.remove_tcp(port)
        part.set_funnel(_host(device, options), port, False)
    if options.service and not part.ports():
        config.remove_service(options.service)
    if not had:
        raise BadServeConfig(f"nothing is served with {_flag(options)}: `pytailscale serve status` shows what is")
    host.served_by.serving.set(config)
    return OK


async def funnel(options: argparse.Namespace, screen: Screen) -> int:
    """The same, on the internet: a port that is served again by `serve` is no longer."""
    return await serve(options, screen)


async def _reset(screen: Screen) -> int:
    _in_daemon().served_by.serving.set(ServeConfig())
    await trio.lowlevel.checkpoint()
    return OK


async def _set(config: ServeConfig) -> int:
    """In place of all that was there."""
    _in_daemon().served_by.serving.set(config)
    await trio.lowlevel.checkpoint()
    return OK


def _in_daemon() -> Hosting:
    host = hosting()
    if host is None:
        raise TailscaleError(NEEDS_A_DAEMON)
    return host


async def _get_config(rest: list[str], screen: Screen) -> int:
    text = json.dumps(json.loads(_in_daemon().served_by.serving.config.to_json()), indent=2) + "\n"
    if rest:
        await trio.Path(_directory(), rest[0]).write_text(text)
    else:
        screen.out.write(text)
    return OK


def _directory() -> str:
    host = hosting()
    return str(host.call.cwd if host is not None else Path.cwd())


async def _read_input() -> bytes:
    source, data = StandardInput(), bytearray()
    while piece := await source.receive():
        data += piece
    return bytes(data)


async def _status(options: argparse.Namespace, screen: Screen) -> int:
    config = await _present(options)
    if options.json:
        screen.json(json.loads(config.to_json()))
        return OK
    lines = [*lines_of(config), *_lines_of_services(config)]
    if not lines:
        screen.note("nothing is served")
    for line in lines:
        screen.say(line)
    return OK


async def _present(options: argparse.Namespace) -> ServeConfig:
    """The daemon's, or what is kept for the next one."""
    await trio.lowlevel.checkpoint()
    host = hosting()
    if host is not None:
        return host.served_by.serving.config
    where = state_path(options)
    return ServeConfig.read(open_store(where).read(ENTRY) or b"") if where is not None else ServeConfig()


def lines_of(config: ServeConfig, only: int | None = None) -> Iterator[str]:
    """As upstream shows a config: each place, and what stands behind it."""
    funnels = config.funnels()
    for number, handler in sorted(config.ports().items()):
        if only not in (None, number):
            continue
        kind = kind_of(handler)
        if kind not in WEB:
            note = " (TLS-terminated)" if kind == "tls-terminated-tcp" else ""
            version = handler.get("ProxyProtocol")
            yield f"tcp port {number}{note}" + (f" (PROXY v{version})" if version else "")
            to = handler.get("TCPForward", "")
            yield f"|--> {to if to.startswith('unix:') else f'tcp://{to}'}"
            continue
        for (host, port), mounts in sorted(config.web().items()):
            if port != number:
                continue
            suffix = "" if (kind, port) in (("http", 80), ("https", 443)) else f":{port}"
            yield f"{kind}://{host}{suffix} ({'Funnel on' if (host, port) in funnels else 'tailnet only'})"
            width = max(map(len, mounts), default=0)
            for mount in sorted(mounts, key=len):
                yield f"|-- {mount:<{width}} {_described(mounts[mount])}"


def _lines_of_services(config: ServeConfig) -> Iterator[str]:
    host = hosting()
    advertised = host.served_by.serving.advertised if host is not None else tuple(config.services())
    for name in sorted(config.services()):
        yield f"{name}" if name in advertised else f"{name} (draining: it gets nobody new)"
        yield from (f"  {line}" for line in lines_of(config.service(name)))


def _described(handler: dict[str, Any]) -> str:
    for name in ("Path", "Proxy", "Redirect"):
        if handler.get(name):
            return f"{name.lower():<5} {handler[name]}"
    text = handler.get("Text", "")
    return f'text  "{text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."}"'
