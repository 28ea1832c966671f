"""The daemon as a whole: one Device kept alive, a socket that answers, a log, a pid file, and the order of their lives.

Owns the composition and the end. Every part is made from those above it; `pytailscale up` makes the Daemon and runs it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from tailscale._private_files import CAREFULLY, make_folder, read_pid, try_lock
from tailscale._spelling import clean_routes, clean_tags
from tailscale.daemon.answering import Answer, Question, Routes, json_answer
from tailscale.daemon.bus import Bus
from tailscale.daemon.calls import Call, Calls
from tailscale.daemon.door import Door
from tailscale.daemon.frames import PROTOCOL
from tailscale.daemon.keeper import LOGIN, Keeper, MakeDevice, Wishes
from tailscale.daemon.localapi import LocalApi
from tailscale.daemon.log import LEVELS, LOG_FILES, LOG_SIZE, DaemonLog
from tailscale.daemon.meshes import Meshes
from tailscale.daemon.notify import notify, watchdog_interval
from tailscale.daemon.own_api import ROOT, OwnApi
from tailscale.daemon.parts import KINDS, Parts, Started
from tailscale.daemon.places import Places
from tailscale.daemon.prefs import LIVE, Prefs
from tailscale.daemon.rooms import ROOMS, Room
from tailscale.daemon.serving import Serving
from tailscale.daemon.settings import Settings
from tailscale.daemon.taildrop import Taildrop
from tailscale.daemon.transport import Transport, transport_for
from tailscale.daemon.views import Views
from tailscale.device import Device
from tailscale.errors import StateLocked, TailscaleError
from tailscale.files.folders import HAS_OPENAT
from tailscale.foreign_text import guard_logs
from tailscale.state_file import MemoryStore, NamedStore
from tailscale.tun_options import TunOptions

log = logging.getLogger("tailscale.daemon")
ENDED, AGAIN = "ended", "again"
ASKED = ("hostname", *LOGIN, "tags", "control_url", "app")
# A device that runs takes them as it is.
ASKED_LIVE = {"advertise_routes": list, "advertise_exit_node": bool, "runs_ssh": bool, "uplinks": list, "paths": str}
# What a key of [device] falls back to when it is taken out; a name and a coordination server stay as they are.
DEFAULTS: dict[str, Any] = {
    "accept_routes": True,
    "advertise_exit_node": False,
    "advertise_routes": (),
    "exit_node": None,
    "hard_nats": True,
    "shields_up": False,
    "paths": "best",
    "tags": (),
    "udp_port": 0,
    "uplinks": None,
}

RunCommand = Callable[["Daemon", Call], Awaitable["int | None"]]
"""How the words of a light client become a command; the command line hands it in."""


class Daemon:
    """One daemon.

    ```python no-run: runs until it is told to end
    daemon = Daemon(places(), Device, run_command)
    await daemon.run()
    ```
    """

    def __init__(
        self,
        where: Places,
        make_device: MakeDevice,
        run_command: RunCommand,
        *,
        wishes: Wishes | None = None,
        read: Callable[[], Settings] = Settings,
        apps: Sequence[str] = (),
        runs_ssh: bool | None = None,
        store: NamedStore | None = None,
        transport: Transport | None = None,
        rooms: Sequence[Callable[[Keeper], Room]] = ROOMS,
    ) -> None:
        self.places = where
        self._read = read
        self.settings = settings = read()
        level = LEVELS[settings.log.get("level", "info")]
        size, files = settings.log.get("size", LOG_SIZE), settings.log.get("files", LOG_FILES)
        self.log = DaemonLog(where.log, level, size, files)
        self.meshes = Meshes()
        self.keeper = Keeper(make_device, wishes or Wishes(), self._beside)
        self.taildrop = Taildrop(self.keeper, Path(where.state).with_suffix(".files"))
        kept = store if store is not None else MemoryStore()
        self._transport = transport or transport_for(where.socket)
        self.serving = Serving(self.keeper, kept, self._transport.path)
        of_rooms = {"mesh": self._run_mesh, "serve": self.serving.run_setting, "taildrop": self.taildrop.run}
        self.parts = Parts(KINDS | of_rooms)
        self._apps = list(apps)
        self.prefs = Prefs(self.keeper, kept, self.serving)
        self._runs_ssh = runs_ssh
        self._tun: list[tuple[str, dict[str, Any]]] | None = None
        self._want_parts()
        self.prefs.watch(self._want_parts)
        self.calls = Calls(lambda call: run_command(self, call))
        self._ending = trio.Event()
        self._outcome = ENDED
        routes = Routes()
        facts: dict[str, Any] = {"socket": self._transport.path, "state_file": where.state, "log": where.log}
        self.own_api = OwnApi(self.keeper, self.log, facts)
        self.own_api.add_to(routes)
        Views(self.keeper, self.own_api).add_to(routes)
        doing = {"up": self._up, "down": self._down, "stop": self._stop, "restart": self._restart}
        for name, handler in (doing | {"reload": self._reload}).items():
            routes.add("POST", ROOT + name, handler)
        routes.add("GET", f"{ROOT}config", self._config, writers=True)
        self.door = Door(self._transport, routes)
        self.door.add_upgrade(f"{ROOT}run", PROTOCOL, self.calls.serve)
        localapi = LocalApi(self.keeper, self.prefs, self.own_api)
        localapi.add_to(routes, self.door)
        Bus(self.keeper, self.prefs, localapi, self.serving).add_to(routes)
        self.taildrop.add_to(routes)
        self.serving.add_to(routes)
        self.rooms = [make(self.keeper) for make in rooms]
        for room in self.rooms:
            room.add_to(routes)

    # Lifecycle

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> str:
        """Until it is told to end: `ENDED`, or `AGAIN` where another process is to take its place.

        Raises StateLocked where a daemon keeps this state already, SocketPlaceTaken where the socket cannot be.
        """
        guard_logs()
        with pid_file(self.places.pid), self.log.running():
            self.prefs.load()
            if self._runs_ssh is not None:
                self.prefs.runs_ssh = self._runs_ssh
            self._want_parts()
            self.serving.load()
            async with trio.open_nursery() as nursery:
                await nursery.start(self.door.run)
                log.info("the daemon listens at %s, process %d", self._transport.path, os.getpid())
                nursery.start_soon(self.keeper.run)
                nursery.start_soon(self._tell_systemd)
                task_status.started()
                await self._ending.wait()
                notify(STOPPING="1")
                await self.keeper.stop()
                nursery.cancel_scope.cancel()
            log.info("the daemon has ended")
        return self._outcome

    @property
    def is_ending(self) -> bool:
        return self._ending.is_set()

    def end(self, outcome: str = ENDED) -> None:
        """Say goodbye and return from `run`."""
        self._outcome = outcome
        self._ending.set()

    async def _beside(self, device: Device) -> None:
        """What runs while a Device is usable. Its preferences and its state are in force from now on."""
        self.prefs.tell()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.meshes.run, device)
            nursery.start_soon(self.serving.run, device)
            nursery.start_soon(self.parts.run, device)
            for room in self.rooms:
                nursery.start_soon(room.run, device)

    async def _run_mesh(self, device: Device, keys: dict[str, Any], started: Started) -> None:
        """A mesh that is there whether a command wants it or not."""
        async with self.meshes.of(keys["app"]):
            started(device.name)
            await trio.sleep_forever()

    def _want_parts(self) -> None:
        """Those of the settings, what `up` or `tailscale set` asked for, and an inbox, as the settings say or not."""
        asked = [*self.settings.parts, *(("mesh", {"app": app}) for app in self._apps)]
        self.prefs.has_ssh_section = any(kind == "ssh" for kind, _ in asked)
        if self.prefs.runs_ssh and not self.prefs.has_ssh_section:
            asked.append(("ssh", {}))
        if self._tun is not None:
            asked = [part for part in asked if part[0] != "tun"] + self._tun
        has_inbox = not HAS_OPENAT or any(kind == "taildrop" for kind, _ in asked)
        self.parts.want(asked if has_inbox else [("taildrop", {}), *asked])

    def keep_tun(self, options: TunOptions | None) -> None:
        """What a command has brought up is the daemon's from now on, None for nothing; until the settings are read."""
        self._tun = [("tun", asdict(options))] if options is not None else []
        self._want_parts()

    async def reload(self) -> None:
        """Read config.toml again. Raises BadSettings, and then nothing has changed."""
        before, after = self.settings, self._read()
        self.settings, self._tun = after, None
        self._want_parts()
        names = before.device.keys() | after.device.keys()
        changed = {
            name: after.device.get(name, DEFAULTS.get(name))
            for name in names
            if before.device.get(name) != after.device.get(name) and (name in after.device or name in DEFAULTS)
        }
        options = device_options(changed)
        live = {name: value for name, value in options.items() if name in LIVE}
        if live and self.keeper.is_ready:
            await self.keeper.device.set(**live)
        self.keeper.wishes.options |= live
        others = {name: value for name, value in options.items() if name not in LIVE}
        if others and self.keeper.wishes.is_wanted:
            await self.keeper.start(**others)
        self.prefs.tell()
        log.info("%s was read again", after.path or "config.toml")

    async def _tell_systemd(self) -> None:
        """Ready once the device is usable, or somebody has to do something about it: services behind us may start."""
        async with trio.open_nursery() as nursery:
            interval = watchdog_interval()
            if interval is not None:
                nursery.start_soon(_feed_watchdog, interval)
            await self.keeper.settle()
            notify(READY="1", STATUS=self._in_a_word(), MAINPID=str(os.getpid()))

    def _in_a_word(self) -> str:
        if self.keeper.is_ready:
            return "joined"
        if self.keeper.login_url:
            return "needs a login: `pytailscale status` says where"
        return str(self.keeper.problem) if self.keeper.problem is not None else "down, as it was told"

    # What may be asked of it

    async def _up(self, question: Question) -> Answer:
        options = await question.json()
        live = {name: options.pop(name) for name in ASKED_LIVE if name in options}
        for name, value in live.items():
            if type(value) is not ASKED_LIVE[name]:
                raise ValueError(f"`up` takes {name} as a {ASKED_LIVE[name].__name__}")
        for name, value in options.items():
            if name not in ASKED or not isinstance(value, str):
                raise ValueError(f"`up` takes {', '.join(ASKED)}, each a text, not {name}")
        if "tags" in options:
            options["tags"] = clean_tags(options["tags"].split(","))
        app = options.pop("app", None)
        if app is not None and app not in self._apps:
            self._apps.append(app)
            self._want_parts()
        if "runs_ssh" in live:
            await self.prefs.apply({"RunSSH": live.pop("runs_ssh"), "RunSSHSet": True})
        if "advertise_routes" in live:
            live["advertise_routes"] = clean_routes(live["advertise_routes"])
        if live and self.keeper.has_device and self.keeper.is_ready:
            await self.keeper.device.set(**live)
        self.keeper.wishes.options |= live
        await self.keeper.start(**options)
        return json_answer({})

    async def _down(self, _: Question) -> Answer:
        await self.keeper.stop()
        return json_answer({})

    async def _stop(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        answer = json_answer({"pid": os.getpid()})
        answer.then = self.end
        return answer

    async def _reload(self, _: Question) -> Answer:
        await self.reload()
        return json_answer({})

    async def _config(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        settings = self.settings
        return json_answer({"file": settings.path, "device": settings.device, "parts": self.parts.to_list()})

    async def _restart(self, _: Question) -> Answer:
        await trio.lowlevel.checkpoint()
        answer = json_answer({"pid": os.getpid()})
        answer.then = lambda: self.end(AGAIN)
        return answer


def device_options(table: dict[str, Any]) -> dict[str, Any]:
    """The section [device] as options of a Device."""
    options = dict(table)
    for name in ("auth_key", "id_token"):
        if file := options.pop(f"{name}_file", ""):
            options[name] = f"file:{Path(file).expanduser()}"
    return options


async def _feed_watchdog(interval: float) -> None:
    while True:
        notify(WATCHDOG="1")
        await trio.sleep(interval)


@contextmanager
def pid_file(path: str) -> Iterator[None]:
    """One daemon for a state; the lock dies with the process, the number in the file may outlive it."""
    try:
        make_folder(Path(path).parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | CAREFULLY, 0o600)
    except OSError as error:
        raise TailscaleError(f"{path} cannot be written: {error.strerror}. --state names another place") from error
    try:
        if not try_lock(descriptor):
            raise StateLocked(path, read_pid(descriptor))
        with suppress(OSError):  # a full disk: the lock is what counts
            os.ftruncate(descriptor, 0)
            os.write(descriptor, b"%d\n" % os.getpid())
        yield
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
