"""What may be typed: commands, options and their help. Owns the parser; knows no device."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tailscale._spelling import DEFAULT_TUN_NAME, PING_KINDS, clean_routes, clean_tags, default_hostname
from tailscale.cli.exit_codes import EXIT_TABLE
from tailscale.cli.file_arguments import add_file
from tailscale.cli.ingress_arguments import add_ingress
from tailscale.cli.mesh_arguments import add_mesh
from tailscale.cli.ports import host_maybe_port, port
from tailscale.cli.serve_arguments import add_funnel, add_serve
from tailscale.cli.uplink_arguments import add_bench, add_uplinks, strategy
from tailscale.daemon import places
from tailscale.daemon.durations import seconds_untrusted
from ts_base.errors import BadPacket
from ts_base.ip import TUNNEL_MTU

STANDARD_OUTPUT = "-"
DEFAULT_TIMEOUT = 30.0
WATCH_INTERVAL = 2.0
UDP_WAIT = 1.0
SSH_PORT = 22
DEFAULTS: dict[str, Any] = {
    "state": None,
    "socket": None,
    "config": None,
    "apps": [],
    "hostname": None,
    "auth_key": None,
    "client_id": None,
    "id_token": None,
    "audience": None,
    "tags": (),
    "control_url": None,
    "ephemeral": False,
    "uplinks": None,
    "paths": None,
    "timeout": DEFAULT_TIMEOUT,
    "verbose": 0,
    "plain": False,
    "json": False,
}
DESCRIPTION = (
    "A Tailscale node without root. `up` starts a daemon that keeps one; every other command uses it where it "
    "runs, and joins the tailnet for itself where not."
)


def default_state() -> Path:
    """Where the device of this user is kept between commands."""
    return Path(places.default_state())


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse_args(argv, argparse.Namespace(**DEFAULTS))
    if options.command == "nc":
        _find_port(parser.commands()["nc"], options)
    if options.command == "cert" and options.cert_file is None and options.key_file is None:
        base = options.name.replace("*.", "wildcard_.", 1)
        vars(options).update(cert_file=Path(f"{base}.crt"), key_file=Path(f"{base}.key"))
    if options.command == "dns" and (options.question == "query") != (options.name is not None):
        parser.commands()["dns"].error("a name goes with query: dns query NAME [TYPE]")
    return options


def _find_port(nc: Parser, options: argparse.Namespace) -> None:
    """`nc db 22`, as ssh's ProxyCommand has it, and `nc db:22`, as everything else does."""
    try:
        host, number = host_maybe_port(options.host)
    except argparse.ArgumentTypeError as problem:
        nc.error(str(problem))
    if options.port is not None and number is not None:
        nc.error(f"two ports: {number} and {options.port}")
    if options.port is None and number is None:
        nc.error("a port is missing: nc HOST PORT, or nc HOST:PORT")
    vars(options).update(host=host, port=options.port or number)


class Parser(argparse.ArgumentParser):
    """One that can be asked what it takes: for what completes, and for tests."""

    def actions(self) -> list[argparse.Action]:
        return list(self._actions)

    def commands(self) -> dict[str, Parser]:
        """The parsers of the commands, by name; {} for that of a command."""
        return next((dict(action.choices) for action in self._actions if isinstance(action.choices, dict)), {})


def build_parser() -> Parser:
    common = _common_options()
    parser = Parser(
        prog="pytailscale",
        description=DESCRIPTION,
        epilog=_epilog(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("--version", action="version", version=f"pytailscale {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    adder = _Adder(commands, common)
    _add_reading(adder)
    _add_names_and_lock(adder)
    _add_watching(adder)
    _add_connecting(adder)
    _add_proxying(adder)
    _add_account(adder)
    add_mesh(adder)
    add_file(adder)
    add_serve(adder)
    add_funnel(adder)
    add_ingress(adder)
    _add_daemon(adder)
    _add_tun(adder)
    _add_about(adder)
    return parser


def _version() -> str:
    from tailscale import __version__

    return __version__


def _common_options() -> argparse.ArgumentParser:
    """Accepted before and after the command; suppressed defaults keep one from undoing the other."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("this device")
    group.add_argument("--state", metavar="PATH", help=f"directory or file that keeps the device ({default_state()})")
    group.add_argument("--socket", metavar="PATH", help="where the daemon listens (beside the state)")
    group.add_argument("--hostname", metavar="NAME", help=f"name in the tailnet (TS_HOSTNAME, or {default_hostname()})")
    group.add_argument(
        "--auth-key", metavar="KEY", help="join without a login page (TS_AUTHKEY, which `ps` does not show)"
    )
    group.add_argument("--client-id", metavar="ID", help="join as a workload the tailnet trusts (TS_CLIENT_ID)")
    group.add_argument("--id-token", metavar="TOKEN", help="with its token, or file:PATH (TS_ID_TOKEN)")
    group.add_argument(
        "--audience", metavar="NAME", help="or with one found in GitHub Actions, Google Cloud, AWS (TS_AUDIENCE)"
    )
    group.add_argument(
        "--advertise-tags", dest="tags", type=_tags, metavar="TAGS", help="tags to ask for: tag:ci,tag:test"
    )
    group.add_argument("--control-url", metavar="URL", help="coordination server (TS_CONTROL_URL, or Tailscale's)")
    group.add_argument(
        "--uplink",
        dest="uplinks",
        action="append",
        metavar="NAME",
        help="reach peers by this interface; repeatable, or all",
    )
    group.add_argument("--paths", type=strategy, metavar="STRATEGY", help="with uplinks: best, redundant, spread ...")
    group.add_argument("--ephemeral", action="store_true", help="forget the device afterwards; keeps no state file")
    group.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help=f"patience for joining and dialling ({DEFAULT_TIMEOUT:g})"
    )
    group.add_argument("-v", "--verbose", action="count", help="log to stderr, and tracebacks; twice for more")
    group.add_argument("--plain", action="store_true", help="no colours and no live line, as when piped")
    return common


def _tags(text: str) -> tuple[str, ...]:
    try:
        return clean_tags(tag for tag in text.split(",") if tag)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("tags takes ")) from None


def _duration(text: str) -> float:
    try:
        return seconds_untrusted(text)
    except BadPacket as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


class _Adder:
    """Adds one command with the common options."""

    def __init__(self, commands: Any, common: argparse.ArgumentParser) -> None:
        self._commands, self._common = commands, common

    def add(self, name: str, help: str, *, json: bool = False, **options: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = self._commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            parents=[self._common],
            epilog=_epilog(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,
        )
        if json:
            parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="machine-readable")
        return parser

    def below(self, parser: argparse.ArgumentParser, name: str, metavar: str) -> _Adder:
        """For a command of several words: adds what may follow the first, which is kept as `name`."""
        return _Adder(parser.add_subparsers(dest=name, metavar=metavar, required=True), self._common)


def _add_reading(adder: _Adder) -> None:
    status = adder.add("status", "this device and its peers", json=True)
    status.add_argument("--online", action="store_true", help="only peers that are online")
    status.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=WATCH_INTERVAL,
        metavar="SECONDS",
        help=f"again and again, until Ctrl-C ({WATCH_INTERVAL:g})",
    )

    ping = adder.add("ping", "how far a peer is, and by which path", json=True)
    ping.add_argument("host", help="name or address of the peer")
    ping.add_argument("-c", "--count", type=_positive, default=None, help="how many (4; with --until-direct 20)")
    ping.add_argument("-i", "--interval", type=_seconds, default=0.5, metavar="SECONDS", help="between pings (0.5)")
    ping.add_argument(
        "--kind", choices=PING_KINDS, default="disco", help="what answers: path, tunnel, network stack, or peer API"
    )
    ping.add_argument("--size", type=_whole, default=0, metavar="BYTES", help="pad the probe, to test the path's MTU")
    ping.add_argument("--until-direct", action="store_true", help="stop once the path is direct; fail if it never is")

    whois = adder.add("whois", "who is behind an address of the tailnet", json=True)
    whois.add_argument("address", help="IP address or IP:port; a peer's name works too")

    ip = adder.add("ip", "addresses of this device, or of a peer", json=True)
    ip.add_argument("host", nargs="?", help="a peer's name")
    family = ip.add_mutually_exclusive_group()
    family.add_argument("-4", dest="family", action="store_const", const=4, default=None, help="only IPv4")
    family.add_argument("-6", dest="family", action="store_const", const=6, help="only IPv6")

    exits = adder.add("exits", "exit nodes: where, how far, and which one a choice takes", json=True)
    exits.add_argument(
        "choice",
        nargs="?",
        type=_exit_choice,
        default="any",
        metavar="CHOICE",
        help="NL, NL/ams, node:NAME,NAME..., tag:NAME, none or direct (any)",
    )

    add_bench(adder, _seconds, _positive)
    add_uplinks(adder, {"type": _seconds, "nargs": "?", "const": WATCH_INTERVAL, "metavar": "SECONDS"})
    adder.add("netcheck", "what the network around us allows: UDP, NAT, relays", json=True)
    doctor = adder.add("doctor", "find what is wrong, and say what to set", json=True)
    doctor.add_argument(
        "where",
        nargs="?",
        type=host_maybe_port,
        default=(None, None),
        metavar="HOST[:PORT]",
        help="whom to reach as well",
    )
    adder.add("version", "versions of this program and what it stands on", json=True)


def _add_names_and_lock(adder: _Adder) -> None:
    dns = adder.add("dns", "ask a name, show how names are looked up, or answer names on this machine", json=True)
    dns.add_argument("question", nargs="?", choices=("status", "query"), default="status", help="what to do (status)")
    dns.add_argument("name", nargs="?", help="with query: the name")
    dns.add_argument("type", nargs="?", default="A", type=str.upper, help="with query: A, AAAA, PTR, TXT ... (A)")
    dns.add_argument(
        "--listen", metavar="HOST:PORT", help="be a DNS server there, as 127.0.0.1:5353, UDP and TCP, until Ctrl-C"
    )

    lock = adder.add("lock", "the tailnet's lock: who is signed, who may sign, what was changed", json=True)
    lock.add_argument("verb", nargs="?", default="status", choices=("status", "sign", "log"), help="(status)")
    lock.add_argument("node", nargs="?", help="sign: a node's name, or its nodekey:")
    lock.add_argument("rotation_key", nargs="?", default="", metavar="tlpub", help="sign: lets it change its key later")


def _add_watching(adder: _Adder) -> None:
    why = adder.add("why", "why a port can be reached, or what stands in the way", json=True)
    why.add_argument("where", type=host_maybe_port, metavar="HOST:PORT", help="HOST alone looks at the way there only")
    why.add_argument("--udp", action="store_true", help="ask a UDP port, with an empty datagram")
    capture = adder.add("capture", "write the packets inside the tunnel to a file for Wireshark")
    capture.add_argument(
        "file", type=_file_or_dash, metavar="FILE", help="pcapng; - is standard output, as in `| wireshark -k -i -`"
    )
    capture.add_argument("--peer", metavar="PEER", help="only what goes to this peer, or comes from it")
    capture.add_argument("-c", "--count", type=_positive, default=None, metavar="N", help="end after N packets")
    capture.add_argument("--seconds", type=_seconds, default=None, help="end after this time (at Ctrl-C)")
    capture.add_argument(
        "--snaplen", type=_positive, default=65_535, metavar="BYTES", help="keep the first bytes of each packet"
    )
    cert = adder.add("cert", "a certificate for the name of this device, for servers of this machine")
    cert.add_argument("name", metavar="NAME", help="as `pytailscale status` has it")
    cert.add_argument("--cert-file", type=_file_or_dash, metavar="FILE", help="the chain (NAME.crt); - is a pipe")
    cert.add_argument("--key-file", type=_file_or_dash, metavar="FILE", help="the private key (NAME.key); - is a pipe")
    cert.add_argument(
        "--min-validity", type=_duration, default=0.0, metavar="TIME", help="replace one that is good for less: 720h"
    )
    adder.add("top", "peers, paths, flows, exits and what is wrong, live in this terminal", json=True)
    web = adder.add("web", "a status page for the browser, on this machine only")
    web.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:0", help="by default a free port of loopback")
    web.add_argument("--allow-changes", action="store_true", help="let the page choose the exit node")
    metrics = adder.add("metrics", "everything that is counted, as Prometheus reads it")
    metrics.add_argument("--listen", metavar="HOST:PORT", help="serve /metrics, /healthz and /readyz until Ctrl-C")
    metrics.add_argument("--peers", action="store_true", help="tell of each peer by name")


def _add_connecting(adder: _Adder) -> None:
    adder.add("demo", "a working tailnet on this machine: control server, relay, two devices, real traffic")

    nc = adder.add("nc", "connect standard input and output to a port of a peer")
    nc.add_argument("host", metavar="HOST[:PORT]", help="name or address of the peer")
    nc.add_argument("port", nargs="?", type=port, metavar="PORT", help="a number, or a service such as ssh")
    nc.add_argument("-u", "--udp", action="store_true", help="datagrams: one for each piece of input")
    nc.add_argument(
        "-w",
        "--wait",
        type=_seconds,
        default=UDP_WAIT,
        metavar="SECONDS",
        help=f"with -u: for answers once the input has ended ({UDP_WAIT:g})",
    )

    listen = adder.add("listen", "accept connections from the tailnet and print what they send")
    listen.add_argument("port", type=_port_or_zero, help="0 picks one")
    deed = listen.add_mutually_exclusive_group()
    deed.add_argument("--to", type=_host_and_port, metavar="HOST:PORT", help="forward to a TCP port of this machine")
    deed.add_argument("--echo", action="store_true", help="send everything back")
    telling = listen.add_mutually_exclusive_group()
    telling.add_argument(
        "--proxy-protocol",
        type=int,
        choices=(1, 2),
        default=0,
        help="with --to: say first who calls, by a PROXY header",
    )
    telling.add_argument(
        "--http", action="store_true", help="with --to: tell a web server who calls, in headers nobody can forge"
    )
    listen.add_argument("--once", action="store_true", help="end after the first connection")

    ssh = adder.add("ssh", "OpenSSH to a peer, held to the keys that the tailnet knows of it")
    ssh.add_argument("where", metavar="[USER@]HOST", help="name or address of the peer")
    ssh.add_argument("rest", nargs=argparse.REMAINDER, metavar="ARGS", help="for ssh, after the host: a command")
    sshd = adder.add("sshd", "be an SSH server: the tailnet's policy decides who logs in")
    sshd.add_argument("--shell", action="store_true", help="give a shell, sftp and forwards of this user")
    for parser in (ssh, sshd):
        parser.add_argument("--port", type=port, default=SSH_PORT, help=f"({SSH_PORT})")


def _add_proxying(adder: _Adder) -> None:
    proxy = adder.add("proxy", "let other programs use the tailnet and its exits, by SOCKS 5 and HTTP")
    proxy.add_argument(
        "listen", nargs="*", metavar="LISTEN[=SPEC]", help="where (127.0.0.1:1080; tailnet:1080), and by which exits"
    )
    proxy.add_argument("--users", metavar="FILE", type=Path, help="name:password, one in a line")
    proxy.add_argument("--config", metavar="FILE.toml", type=Path, help="all of this in a file")
    proxy.add_argument("--no-ui", action="store_true", help="no live line")
    command = adder.add("exec", "run a command whose connections go through the tailnet and an exit")
    command.add_argument("program", nargs=argparse.REMAINDER, metavar="-- CMD", help="its exit code is passed on")
    for parser in (proxy, command):
        parser.add_argument("--exit", metavar="SPEC", help="NL, NL/ams, node:hq,hq-backup, tag:exit, any, none (none)")
        parser.add_argument(
            "--direct",
            action=argparse.BooleanOptionalAction,
            help="what the tailnet has not: by this machine's network",
        )


def _add_account(adder: _Adder) -> None:
    adder.add("login", "join the tailnet and keep the device for the other commands", json=True)
    adder.add("logout", "leave the tailnet and give the device's key back")


def _add_daemon(adder: _Adder) -> None:
    up = adder.add("up", "start a daemon that keeps this device, and wait until it has joined", json=True)
    up.add_argument("--foreground", action="store_true", help="be the daemon, until Ctrl-C or SIGTERM")
    up.add_argument("--restart", action="store_true", help="one that runs already begins again, in the same process")
    up.add_argument("--install-unit", action="store_true", help="write a systemd unit that starts it at boot")
    up.add_argument(
        "--app", action="append", default=[], dest="apps", metavar="NAME", help="be in the mesh of this app; several"
    )
    up.add_argument("--config", metavar="FILE", type=Path, help="settings of the daemon (config.toml beside the state)")
    routes = "subnets to forward to for others, as 192.168.7.0/24,10.0.0.0/8;  for none"
    up.add_argument("--advertise-routes", metavar="ROUTES", type=_routes, help=routes)
    is_exit = argparse.BooleanOptionalAction
    up.add_argument("--advertise-exit-node", action=is_exit, help="offer to be an exit node, or no longer")
    ssh = "be an SSH server that gives a shell of this user to whom the tailnet's policy lets in, or no longer"
    up.add_argument("--ssh", action=argparse.BooleanOptionalAction, help=ssh)
    adder.add("down", "end the daemon")

    config = adder.add("config", "check the settings of the daemon, by line", json=True)
    config.add_argument("deed", choices=("check",), help="say what is wrong with it; 1 if anything is")
    config.add_argument("file", nargs="?", type=Path, metavar="FILE", help="another one than the daemon's")


def _add_tun(adder: _Adder) -> None:
    tun = adder.add("tun", "let every program of this machine reach the tailnet, by a network interface", json=True)
    tun.add_argument("verb", nargs="?", default="status", choices=("status", "up", "down"), help="(status)")
    tun.add_argument("--name", default=DEFAULT_TUN_NAME, help=f"of the interface ({DEFAULT_TUN_NAME})")
    tun.add_argument("--mtu", type=_positive, default=TUNNEL_MTU, metavar="BYTES", help=f"({TUNNEL_MTU})")
    tun.add_argument("--split", action="store_true", help="only the tailnet, although an exit node is chosen")
    tun.add_argument(
        "--exclude", type=_routes, default=[], metavar="PREFIXES", help="never through the tunnel: 10.1.0.0/16,..."
    )
    dns = argparse.BooleanOptionalAction
    tun.add_argument("--dns", action=dns, default="auto", help="tell systemd-resolved of our names (where it runs)")
    tun.add_argument("--cleanup", action="store_true", help="take back what a killed process left")


def _add_about(adder: _Adder) -> None:
    completion = adder.add("completion", "print what makes a shell complete commands, options and peers")
    completion.add_argument("shell", choices=("bash", "zsh", "fish", "peers"), help="or `peers`: the names that fit")
    schema = adder.add("schema", "print the JSON schema of what a command prints with --json")
    schema.add_argument("verb", nargs="?", help="a command (all that have one)")


def _epilog() -> str:
    rows = "\n".join(f"  {code:<4}{meaning}" for code, meaning in EXIT_TABLE)
    return f"exit codes:\n{rows}"


def _exit_choice(text: str) -> str:
    """Checked where it was typed; the same words mean the same in `proxy` and `exec`."""
    from ts_proxy.policy import BadPolicy
    from ts_proxy.spec import parse_spec

    try:
        parse_spec(text)
    except BadPolicy as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None
    return text


def _routes(text: str) -> list[str]:
    """Checked where they were typed."""
    try:
        return list(clean_routes(filter(None, map(str.strip, text.split(",")))))
    except ValueError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from None


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 1280:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1280")
    return value


def _port_or_zero(text: str) -> int:
    return 0 if text == "0" else port(text)


def _file_or_dash(text: str) -> Path | str:
    return text if text == STANDARD_OUTPUT else Path(text)


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, number = text.rpartition(":")
    try:
        return host.strip("[]") or "127.0.0.1", port(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT") from None


for _kind, _name in (
    (_seconds, "number"),
    (_positive, "number"),
    (_whole, "number"),
    (port, "port"),
    (host_maybe_port, "HOST:PORT"),
):
    _kind.__name__ = _name  # argparse says "invalid port value: 'x'"
