"""Writes docs/reference.md and docs/reference/ from the docstrings of the public API. `make docs` runs it; a test
checks that it was run.

Reads the source instead of importing it: signatures come out as they were written.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
INDEX, FOLDER = "docs/reference.md", "docs/reference"
SECTIONS = [
    # page                file(s)                               names; None: every public one of the file
    ("Device",            "tailscale/device.py",                ["Device"]),
    ("Streams and sockets", "tailscale/sockets/tcp.py",         ["TcpStream", "TcpListener"]),
    ("Services",            "tailscale/dial/service_listener.py", ["ServiceListener"]),
    ("",                  "tailscale/sockets/udp.py",           ["UdpSocket"]),
    ("",                  "tailscale/carry.py",                 ["splice"]),
    ("",                  "tailscale/local_ports.py",           ["Forward", "Exposure", "PortStatistics"]),
    ("TUN devices",       "tailscale/tun_options.py",           ["tun", "TunOptions", "TunStatus"]),
    ("",                  "tailscale/dial/service_listener.py", ["ServiceListener"]),
    ("",                  "tailscale/funnel/listening.py",      ["FunnelListener"]),
    ("",                  "tailscale/funnel/streams.py",        ["FunnelStream"]),
    ("Nodes",             "tailscale/nodes.py",                 ["Node", "Peers"]),
    ("Status",            "tailscale/status.py",                None),
    ("Carrying for others", "tailscale/forwarding.py",          None),
    ("Hard NATs",           "tailscale/hard_nats.py",           None),
    ("Tailnet lock",      "tailscale/lock.py",                  None),
    ("Explanations",      "tailscale/explanation.py",           None),
    ("Uplinks",           "tailscale/uplinks.py",               None),
    ("",                  "tailscale/measured.py",              None),
    ("",                  "ts_dataplane/strategies.py",         ["Best", "Backup", "Redundant", "Spread", "Stripe"]),
    ("Captures",          "tailscale/capturing.py",             ["Capture", "CaptureStatistics"]),
    ("Events",            "tailscale/events.py",                None),
    ("Errors",            "ts_base/errors.py",                  ["TailscaleError"]),
    ("",                  "tailscale/errors.py",                None),
    ("State",             "tailscale/state_file.py",            ["Store", "NamedStore", "MemoryStore", "FileStore"]),
    ("",                  "tailscale/state_file.py",            ["State"]),
    ("",                  "tailscale/state_file.py",            ["encode_state", "decode_state_untrusted"]),
    ("tailscale.certificates", "tailscale/certificates/value.py", ["Certificate"]),
    ("",                  "tailscale/certificates/control.py",  ["ControlCertificates"]),
    ("",                  "tailscale/certificates/files.py",    ["FileCertificates"]),
    ("",                  "tailscale/certificates/source.py",   ["CertificateSource", "Ground", "Renewal"]),
    ("",                  "tailscale/certificates/listener.py", ["TlsListener", "TlsStream"]),
    ("",                  "tailscale/certificates/keeper.py",   ["CertificateKeeper", "CertificateStatistics"]),
    ("",                  "tailscale/certificates/challenges.py", ["Challenges"]),
    ("tailscale.stores",  "tailscale/stores.py",                ["EnvironmentStore", "KeyringStore"]),
    ("",                  "tailscale/stores.py",                ["KubernetesStore"]),
    ("tailscale.http",    "tailscale/http/serving.py",          ["serve", "serve_wsgi"]),
    ("",                  "tailscale/http/identity.py",         ["IdentityMiddleware", "WsgiIdentityMiddleware"]),
    ("",                  "tailscale/http/reverse.py",          ["ReverseProxy"]),
    ("",                  "tailscale/http/transport.py",        ["AsyncTransport", "Transport", "PoolOptions"]),
    ("",                  "tailscale/http/requests_adapter.py", ["RequestsAdapter"]),
    ("",                  "tailscale/http/urllib3_pools.py",    ["urllib3_pool"]),
    ("",                  "tailscale/http/aiohttp_connector.py", ["AiohttpConnector"]),
    ("",                  "tailscale/http1/limits.py",          ["Limits"]),
    ("",                  "tailscale/http1/visits.py",          ["Visits", "ServerStatistics"]),
    ("",                  "tailscale/http/lifespan.py",         ["LifespanFailed"]),
    ("tailscale.serve",   "tailscale/serve/serving.py",         ["Serve"]),
    ("",                  "tailscale/serve/targets.py",         ["files", "proxy", "redirect", "tcp", "text"]),
    ("",                  "tailscale/serve/publisher.py",       ["PortStatistics", "ServeStatistics"]),
    ("",                  "tailscale/serve/config.py",          ["BadServeConfig"]),
    ("tailscale.mesh",    "tailscale/mesh/mesh.py",             ["Mesh"]),
    ("",                  "tailscale/mesh/counting.py",         ["MeshStatistics"]),
    ("",                  "tailscale/mesh/peers.py",            ["MeshPeer", "Members"]),
    ("",                  "tailscale/mesh/subscriptions.py",    ["Message", "Subscription"]),
    ("",                  "tailscale/mesh/broadcasting.py",     ["BroadcastReport"]),
    ("",                  "tailscale/mesh/stores.py",           ["Store", "Slice", "Change", "Changes"]),
    ("",                  "tailscale/mesh/events.py",           ["PeerJoined", "PeerLeft", "PeerRenamed"]),
    ("",                  "tailscale/mesh/events.py",           ["PeerConnected"]),
    ("",                  "tailscale/mesh/events.py",           ["PeerDisconnected", "TransferDone"]),
    ("",                  "tailscale/mesh/transfers.py",        ["Inbox", "Offer", "Transfer"]),
    ("",                  "tailscale/files/transfers.py",       ["Progress", "TransferReport", "Skipped"]),
    ("",                  "tailscale/mesh/errors.py",           None),
    ("",                  "ts_mesh/limits.py",                  ["MeshLimits"]),
    ("tailscale.ssh",     "tailscale/ssh/serving.py",           ["serve_ssh"]),
    ("",                  "tailscale/ssh/session.py",           None),
    ("",                  "tailscale/ssh/pipes.py",             ["Reader", "Writer", "SyncReader", "SyncWriter"]),
    ("",                  "tailscale/ssh/host_keys.py",         ["HostKey"]),
    ("",                  "tailscale/ssh/errors.py",            None),
    ("tailscale.ingress", "tailscale/ingress/serving.py",       ["ingress"]),
    ("",                  "tailscale/ingress/relay.py",         ["Ingress", "IngressStatistics"]),
    ("",                  "tailscale/ingress/limits.py",        ["IngressLimits"]),
    ("tailscale.metrics", "tailscale/metrics/text.py",          ["exposition"]),
    ("",                  "tailscale/metrics/registry.py",      ["collector"]),
    ("",                  "tailscale/metrics/looking.py",       ["view"]),
    ("",                  "tailscale/metrics/server.py",        ["serve_metrics"]),
    ("tailscale.taildrop", "tailscale/taildrop/inbox.py",       ["Inbox"]),
    ("",                  "tailscale/taildrop/arriving.py",     ["Offer", "ReceivedFile"]),
    ("",                  "tailscale/taildrop/sending.py",      ["send"]),
    ("",                  "tailscale/taildrop/recipients.py",   ["targets"]),
    ("",                  "tailscale/files/errors.py",          None),
    ("tailscale.aio.taildrop", "tailscale/taildrop/aio_face.py", None),
    ("tailscale.sync.taildrop", "tailscale/taildrop/sync_face.py", None),
    ("tailscale.web",     "tailscale/web/server.py",            ["serve_page"]),
    ("tailscale.aio",     "tailscale/aio.py",                   None),
    ("",                  "tailscale/mesh/aio_face.py",         ["Mesh"]),
    ("tailscale.sync",    "tailscale/sync.py",                  None),
    ("",                  "tailscale/mesh/sync_face.py",        ["Mesh"]),
    ("",                  "tailscale/threads/bridges.py",       ["Forward"]),
    ("",                  "tailscale/threads/loopback.py",      ["TailnetListener", "TailnetSocket"]),
    ("",                  "tailscale/threads/taking.py",        ["TakenDials"]),
    ("tailscale.notebook", "tailscale/notebook.py",             ["Tailnet", "Refused"]),
    ("tailscale.dask",    "tailscale/dask/process_device.py",   ["use", "close"]),
    ("",                  "tailscale/dask/dashboard.py",        ["dask_setup", "dask_teardown"]),
    ("",                  "tailscale/dask/comm.py",             ["Backend"]),
    ("",                  "tailscale/dask/settings.py",         ["UnusableSetting"]),
    ("tailscale.proxy",   "tailscale/proxy/exits.py",           ["Exits"]),
    ("",                  "ts_proxy/breaker.py",                ["Breaker"]),
    ("",                  "tailscale/proxy/exits_status.py",    None),
    ("",                  "tailscale/proxy/events.py",          None),
    ("",                  "tailscale/proxy/errors.py",          None),
    ("",                  "ts_proxy/policy.py",                 ["BadPolicy"]),
    ("",                  "tailscale/proxy/server.py",          ["serve", "Proxy"]),
    ("",                  "tailscale/proxy/service.py",         ["ProxyStatistics"]),
    ("",                  "tailscale/proxy/limits.py",          ["ProxyLimits"]),
    ("",                  "tailscale/proxy/requests.py",        ["Request"]),
    ("",                  "tailscale/proxy/hosted.py",          ["HostedProxy"]),
    ("tailscale.daemon",  "tailscale/daemon/client.py",         ["Client"]),
    ("",                  "tailscale/daemon/daemon.py",         ["Daemon"]),
    ("",                  "tailscale/daemon/aio_client.py",     ["AsyncClient"]),
    ("",                  "tailscale/daemon/requests.py",       ["DaemonError", "DaemonAbsent"]),
    ("tailscale.testing", "tailscale/testing/tailnet.py",       ["Tailnet"]),
    ("",                  "tailscale/testing/exits.py",         ["PlayedExit"]),
    ("",                  "tailscale/testing/servers.py",       ["Control", "Relay"]),
    ("",                  "tailscale/testing/network.py",       ["VirtualNetwork"]),
    ("",                  "tailscale/testing/certificates.py",  ["Certificates"]),
    ("",                  "tailscale/testing/pytest_plugin.py", ["tailnet"]),
    ("tailscale.testing.sync", "tailscale/testing/sync.py",     ["Tailnet"]),
    ("tailscale.testing.aio",  "tailscale/testing/aio.py",      ["Tailnet"]),
]  # fmt: skip
HIDDEN_BASES = {"Protocol", "Mapping[str, Node]", "Running", "DeviceFace", "CaptureFace", "UdpFace", "_Port"}
HIDDEN_BASES |= {"AsyncWithOnly", "WithOnly", "TailnetThread", "MeshFace", "Generic[T]"}
MIXED_IN = {"OwnNode": "tailscale/nodes.py"}  # bases whose members are told as the class's own
MADE_BY_USERS = {"Device", "Exits", "Breaker", "FileStore", "Tailnet", "AsyncTransport", "Transport", "RequestsAdapter"}
INTERNAL = {
    "wake",
    "wait_connected",
    "EventQueue",
    "put",
    "start_waiting",
    "join",
    *("wait_for_room", "admit", "on_request", "on_silence", "leave"),
}  # called by the device, not by its users

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def generate() -> dict[str, str]:
    """Every page by its path: the index, and one for each title in SECTIONS."""
    index = ["# API reference", "", "Made from the docstrings by `make docs`: every public name, by page."]
    pages: dict[str, list[str]] = {}
    for title, file, names in SECTIONS:
        if title:
            page = f"{FOLDER}/{slug(title)}.md"
            pages[page] = [
                f"# Reference: {title}",
                "",
                f"[All pages of the reference](../reference.md#{anchor(title)})",
                "",
            ]
            index += ["", f"## {title}", "", f"[The whole page](reference/{slug(title)}.md)", "", "| | |", "|---|---|"]
        for definition in wanted(ROOT / file, names):
            pages[page] += describe(definition)
            link = f"reference/{Path(page).name}#{definition.name.lower()}"
            index.append(f"| [`{definition.name}`]({link}) | {first_sentence(definition)} |")
    return {path: "\n".join(lines).rstrip() + "\n" for path, lines in {INDEX: index, **pages}.items()}


def anchor(title: str) -> str:
    return title.lower().replace(" ", "-").replace(".", "")


def slug(title: str) -> str:
    return title.lower().removeprefix("tailscale.").replace(" ", "-").replace(".", "-")


def first_sentence(definition: Definition) -> str:
    """What the index says of it."""
    paragraph = " ".join((ast.get_docstring(definition) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", paragraph)[0].removesuffix(":").replace("|", "\\|")


def wanted(path: Path, names: list[str] | None) -> Iterator[Definition]:
    found = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, Definition)}
    for name in found if names is None else names:
        if not name.startswith("_") and name not in INTERNAL:
            yield found[name]


def describe(definition: Definition) -> list[str]:
    if not isinstance(definition, ast.ClassDef):
        return [f"## `{definition.name}`", "", *code(signature(definition)), *text(definition)]
    bases = [
        base
        for base in map(ast.unparse, definition.bases)
        if base not in HIDDEN_BASES | MIXED_IN.keys() and not base.startswith(("_", "Closable["))
    ]
    lines = [
        f"## `{definition.name}`",
        "",
        *kinds(bases),
        *constructor(definition),
        *text(definition),
        *fields(definition),
    ]
    own = {getattr(member, "name", "") for member in definition.body}
    mixed = [m for base in map(ast.unparse, definition.bases) if base in MIXED_IN for m in members_of(base)]
    for member in [*(m for m in mixed if getattr(m, "name", "") not in own), *definition.body]:
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and is_public(member) and is_told(member):
            lines += [f"### `{definition.name}.{member.name}`", "", *code(signature(member)), *text(member)]
    return lines


def kinds(bases: list[str]) -> list[str]:
    return [f"Bases: {', '.join(f'`{base}`' for base in bases)}.", ""] if bases else []


def members_of(mixed_in: str) -> list[ast.stmt]:
    (definition,) = wanted(ROOT / MIXED_IN[mixed_in], [mixed_in])
    return definition.body


def is_public(member: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    is_setter = any(ast.unparse(d).endswith(".setter") for d in member.decorator_list)
    return not member.name.startswith("_") and member.name not in INTERNAL and not is_setter


def is_told(member: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Members without a docstring do what the base class or the twin in `Device` says."""
    return ast.get_docstring(member) is not None


def constructor(definition: ast.ClassDef) -> list[str]:
    """How it is made, where users make it."""
    for member in definition.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            made = signature(member, definition.name).removesuffix(" -> None")
            return code(made) if definition.name in MADE_BY_USERS else []
    return []


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str = "") -> str:
    """One line, or one argument a line where it is long."""
    if any(ast.unparse(d) in ("property", "cached_property") for d in function.decorator_list):
        return f"{function.name}: {ast.unparse(function.returns) if function.returns else 'Any'}"
    word = "async def " if isinstance(function, ast.AsyncFunctionDef) else "def "
    start = name or word + function.name
    arguments = [a for a in split(ast.unparse(function.args)) if a not in ("self", "cls") and not a.startswith("_")]
    arguments = [re.sub(r"(?<=: )(.*?)=", r"\1 = ", argument) for argument in arguments]
    end = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    line = f"{start}({', '.join(arguments)}){end}"
    if len(line) <= 100:
        return line
    return "\n".join([f"{start}(", *(f"    {argument}," for argument in arguments), f"){end}"])


def split(arguments: str) -> list[str]:
    """At the commas that separate arguments, not at those inside them."""
    parts, depth = [""], 0
    for letter in arguments:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def fields(definition: ast.ClassDef) -> list[str]:
    """The public fields of a dataclass, each with the text below it."""
    rows = []
    for member, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            if member.target.id.startswith("_"):
                continue
            kind = ast.unparse(member.annotation).replace("|", "\\|")
            note = following.value.value if is_text(following) else ""
            rows.append(f"| `{member.target.id}` | `{kind}` | {' '.join(note.split())} |")
    return ["| field | type | |", "|---|---|---|", *rows, ""] if rows else []


def is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def code(source: str) -> list[str]:
    return ["```python", source, "```", ""]


def text(definition: Definition) -> list[str]:
    documented = ast.get_docstring(definition, clean=False)
    if documented is None:
        return []
    cleaned = re.sub(r"^```python .*$", "```python", inspect.cleandoc(documented), flags=re.MULTILINE)
    return [*(line.rstrip() for line in cleaned.splitlines()), ""]


def write() -> None:
    made = generate()
    (ROOT / FOLDER).mkdir(exist_ok=True)
    for path in {path.relative_to(ROOT).as_posix() for path in (ROOT / FOLDER).iterdir()} - made.keys():
        (ROOT / path).unlink()
    for path, page in made.items():
        (ROOT / path).write_text(page)
    print(
        f"{INDEX} and {len(made) - 1} pages in {FOLDER}: {sum(len(page.splitlines()) for page in made.values())} lines"
    )


if __name__ == "__main__":
    write()
