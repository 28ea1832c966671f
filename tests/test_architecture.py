"""The laws of ARCHITECTURE.md and CONTRIBUTING.md, held as data. A failure is the sentence it breaks."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterable

import pytest
from source import (
    ROOMS,
    ROOT,
    circles,
    file_of,
    imports,
    is_self,
    modules,
    own_names,
    private_access,
    private_access_of_tests,
)

from tailscale.runtime import messages
from tailscale.runtime.bus import Message, Rate, Reliable

MAY_IMPORT = {
    "tailscale": set(ROOMS),
    "ts_acme": {"ts_base"},
    "ts_control": {"ts_base", "ts_lock"},
    "ts_derp": {"ts_base"},
    "ts_lock": {"ts_base"},
    "ts_mesh": {"ts_base"},
    "ts_proxy": {"ts_base"},
    "ts_netstack": {"ts_base"},
    "ts_dataplane": {"ts_base", "ts_tunnel"},
    "ts_tunnel": {"ts_base"},
    "ts_base": set(),
}
# Inside `tailscale`: plain values that everybody may name, then the wings from the bottom up.
VALUES = {
    *("_causes", "_config", "_faces", "_green", "_lazy", "_ownership", "_private_files", "_process"),
    *("_spelling", "as_html", "dns_reply", "errors", "event_readers", "events", "explanation", "faults", "figures"),
    *("foreign_text", "measured"),
    *("forwarding", "hard_nats", "local_callers", "lock", "nodes", "pcapng", "state_file", "status", "stores"),
    *("tun_options", "uplinks"),
}  # fmt: skip
WINGS: dict[str, set[str]] = {
    **dict.fromkeys(VALUES, VALUES),
    "dns": VALUES,
    "http1": VALUES,
    "sockets": VALUES,
    "runtime": VALUES,
    "dial": VALUES | {"dns", "runtime", "sockets"},
    "_diagnostics": VALUES | {"dial", "dns", "runtime", "sockets"},
    "carry": VALUES | {"sockets"},
    "local_ports": VALUES | {"carry", "sockets"},
    "peerapi": VALUES | {"dns", "http1", "runtime", "sockets"},
    "kernel": VALUES | {"runtime"},
    "measuring": VALUES | {"peerapi", "sockets"},
    "funnel": VALUES | {"certificates", "peerapi", "runtime", "sockets"},
    "certificates": VALUES | {"runtime", "sockets"},
    "_assembly": VALUES
    | {"_diagnostics", "carry", "certificates", "dial", "dns", "funnel", "kernel", "measuring", "peerapi", "runtime"}
    | {"sockets"},
    "capturing": VALUES | {"runtime"},
    "device": VALUES
    | {"_assembly", "_diagnostics", "capturing", "carry", "certificates", "dial", "funnel", "local_ports", "measuring"}
    | {"peerapi"}
    | {"runtime", "sockets"},
    # From here on it is a user's program that happens to be ours: the Device, never what it is made of.
    "threads": VALUES | {"capturing", "carry", "certificates", "device", "funnel", "local_ports", "sockets"},
    **dict.fromkeys(
        ("aio", "sync"),
        VALUES
        | {"capturing", "certificates", "device", "files", "funnel", "local_ports", "mesh", "proxy", "sockets"}
        | {"taildrop", "threads"},
    ),
    "http2": VALUES | {"carry", "http1"},
    "http": VALUES
    | {"aio", "carry", "certificates", "device", "http1", "http2", "local_ports", "sockets", "sync", "threads"},
    "files": VALUES | {"http1", "sockets", "threads"},
    # Their faces stand beside them, and `aio` and `sync` show them.
    **dict.fromkeys(
        ("mesh", "proxy", "taildrop"),
        VALUES | {"carry", "device", "files", "http", "http1", "local_ports", "peerapi", "sockets", "threads"},
    ),
    "ingress": VALUES | {"aio", "carry", "device", "proxy", "sockets", "sync", "threads"},
    "serve": VALUES
    | {"carry", "certificates", "device", "files", "funnel", "http", "http1", "ingress", "local_ports", "sockets"}
    | {"threads"},
    "ssh": VALUES | {"aio", "carry", "device", "runtime", "sockets", "sync", "threads"},
    # A tailnet is composed of the runtime's networks.
    "testing": VALUES | {"aio", "certificates", "device", "runtime", "sockets", "sync", "threads"},
    "metrics": VALUES | {"device", "http", "http1"},
    "dask": VALUES | {"aio", "device", "sync", "threads"},  # one more face over the loop thread
    "web": VALUES | {"device", "http", "http1", "metrics"},
    "daemon": VALUES
    | {
        "_diagnostics",
        "carry",
        "device",
        "files",
        "http",
        "http1",
        "ingress",
        "local_ports",
        "mesh",
        "metrics",
        "proxy",
        "serve",
        "sockets",
        "ssh",
        "taildrop",
    },
    "tui": VALUES | {"daemon"},  # a client of the daemon's socket, like curl
    "notebook": VALUES | {"daemon", "sync", "threads"},
    "__main__": VALUES | {"cli"},
    "cli": VALUES
    | {
        "_diagnostics",
        "capturing",
        "carry",
        "daemon",
        "device",
        "dns",
        "files",
        "http",
        "kernel",
        "local_ports",
        "mesh",
        "metrics",
    }
    | {"ingress", "proxy", "serve", "sockets", "ssh", "taildrop", "testing", "tui", "web"},
}
FACADES = {
    *("http", "aio", "sync", "testing", "cli", "proxy", "mesh", "serve", "ssh", "metrics", "dask", "daemon", "tui"),
    "web",
}
FACADES |= {"ingress", "notebook"}
SHELLS = {
    *("ts_control/client.py", "ts_control/connection.py", "ts_control/outside.py"),
    *("ts_derp/client.py", "ts_derp/dial.py"),
}
AMBIENT = {
    "trio", "time", "socket", "ssl", "random", "secrets", "os", "asyncio", "threading", "select", "subprocess",
    "urllib.request", "logging",
}  # fmt: skip
ALLOWED_AMBIENT = {
    "ts_base/ip.py": {"socket"},  # inet_ntop: text forms, no sockets
    "ts_derp/trust.py": {"ssl"},  # contexts: what to believe, no streams
}
# Files of `tailscale` that only decide: held to the rules of a sans-IO room.
PURE = {
    "tailscale/_causes.py",
    "tailscale/cli/exit_codes.py",
    "tailscale/cli/failures.py",
    "tailscale/cli/findings.py",
    "tailscale/cli/peers_table.py",
    "tailscale/daemon/frames.py",
    "tailscale/daemon/ipn.py",
    "tailscale/daemon/requests.py",
    "tailscale/daemon/settings.py",
    "tailscale/dial/failures.py",
    "tailscale/explanation.py",
    "tailscale/files/errors.py",
    "tailscale/faults.py",
    "tailscale/figures.py",
    "tailscale/forwarding.py",
    "tailscale/pcapng.py",
    "tailscale/dns/local.py",
    "tailscale/dns/messages.py",
    "tailscale/dns/wire.py",
    "tailscale/dns_reply.py",
    "tailscale/peerapi/callers.py",
    "tailscale/peerapi/checks.py",
    "tailscale/dns/names.py",
    "tailscale/funnel/words.py",
    "tailscale/http2/machine.py",
    "tailscale/metrics/table.py",
    "tailscale/mesh/files_client.py",
    "tailscale/nodes.py",
    "tailscale/runtime/forward_guard.py",
    "tailscale/runtime/hostinfo.py",
    "tailscale/runtime/messages.py",
    "tailscale/runtime/hidden_news.py",
    "tailscale/runtime/translate_peers.py",
    "tailscale/runtime/translate_relays.py",
    "tailscale/runtime/translate_tables.py",
    "tailscale/status.py",
    "tailscale/serve/config.py",
    "tailscale/serve/mounts.py",
    "tailscale/serve/ranges.py",
    "tailscale/tun_options.py",
    "tailscale/taildrop/claims.py",
    "tailscale/taildrop/names.py",
    "tailscale/taildrop/recipients.py",
    "tailscale/taildrop/wire.py",
}
ONLY_IN = {
    "h2": {"ts_control/http2.py", "tailscale/http2/machine.py"},
    "noise": {"ts_control/handshake.py", "ts_tunnel/handshake.py", "ts_base/noise.py"},
}
# A room below is told by plain assignment only here: one attribute load on the packet path instead of a call.
ASSIGNED_FROM_ABOVE = {
    **dict.fromkeys(("context", "sni_callback"), "of ssl's own objects: how a handshake is told of its certificate"),
    "tables": "the netmap's routes and filter, replaced whole; read once per burst by the Engine",
    "paths": "a dict of the path finder's that the Engine only reads",
    "owner": "the socket that a connection's changes wake; read once per burst",
}
LONGEST_FUNCTION = 60
LONG_FILES = {
    "tailscale/aio.py": "every public verb as asyncio has it",
    "tailscale/device.py": "every public verb, a line or two each below what it says to its users",
    "ts_netstack/tcp.py": "one connection's whole life, RFC 9293 section 3.10 in its order",
}
LONGEST_FILE = 500
# How often tests reach into private names; `python -m tests.source` counts. May only fall.
PRIVATE_ACCESS_OF_TESTS = {
    "fuzz": 4,
    "interop": 5,
    "tailscale": 41,
    "ts_base": 1,
    "ts_control": 3,
    "ts_dataplane": 19,
    "ts_netstack": 4,
    "ts_tunnel": 12,
}
# Objects that exist for their user only while they are entered; their parts are made by entering.
MADE_BY_ENTERING = {
    "tailscale/cli/demo.py",
    "tailscale/testing/servers.py",
    "tailscale/testing/tailnet.py",
    "tailscale/threads/bridges.py",
    "tailscale/threads/face.py",
}


def hold(law: str, offenders: Iterable[str]) -> None:
    found = sorted(offenders)
    assert not found, f"{law}:\n  " + "\n  ".join(found)


MODULES = modules(*ROOMS)


def of_every_module(law: Callable[[str, ast.Module], None]) -> Callable[[], None]:
    """One test for all files: two thousand would cost more than what they look at."""

    def test() -> None:
        for name, tree in MODULES.items():
            law(name, tree)

    test.__name__, test.__doc__ = law.__name__, law.__doc__
    return test


def wing_of(name: str) -> str:
    """`tailscale/runtime/bus.py` and `tailscale.runtime.bus` are of the wing runtime."""
    return name.removesuffix(".py").replace("/", ".").split(".")[1]


def part_of(name: str) -> str:
    """The room, and inside `tailscale` the wing."""
    return f"tailscale/{wing_of(name)}" if name.startswith("tailscale/") else name.split("/")[0]


# --- who imports whom -----------------------------------------------------------------------------


@of_every_module
def test_module_keeps_the_import_table(name: str, tree: ast.Module) -> None:
    room = name.split("/")[0]
    for imported in imports(tree):
        top = imported.split(".")[0]
        if top in ROOMS and top != room:
            assert top in MAY_IMPORT[room], (
                f"{name} imports {imported}: {room} may import {MAY_IMPORT[room] or 'no room'}"
            )
        if (room != "tailscale" and name not in SHELLS) or name in PURE:
            allowed = ALLOWED_AMBIENT.get(name, set())
            banned = {imported, top} & (AMBIENT - allowed)
            assert not banned, f"{name} imports {imported}: a sans-IO file takes time, entropy and bytes as arguments"
        if top in ONLY_IN:
            assert name in ONLY_IN[top], f"{name} imports {imported}: only {', '.join(sorted(ONLY_IN[top]))} may"


def test_wings_keep_their_order() -> None:
    wrong = set()
    for name, tree in MODULES.items():
        if not name.startswith("tailscale/") or name == "tailscale/__init__.py":
            continue
        wing = wing_of(name)
        assert wing in WINGS, f"{name}: the wing {wing} has no line in WINGS that says whom it may import"
        for imported in imports(tree):
            if imported.startswith("tailscale.") and wing_of(imported) not in WINGS[wing] | {wing}:
                wrong.add(f"{name} imports {imported}")
    hold("a wing imports only those below it", wrong)


def test_no_imports_go_round() -> None:
    """Those under TYPE_CHECKING count: who names the type of what stands above it knows of it. The front counts not."""
    graph = {
        name: {file for module in imports(tree) if (file := file_of(module)) and not file.endswith("__init__.py")}
        for name, tree in MODULES.items()
        if not name.endswith("__init__.py")
    }
    hold("imports go round in circles", {name for circle in circles(graph) for name in circle})


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == [{"a", "b", "c"}]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_nobody_inside_imports_the_shop_window() -> None:
    for name, tree in MODULES.items():
        if name.split("/")[0] != "tailscale" or wing_of(name) in FACADES:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert all(alias.name != "tailscale" for alias in node.names), f"{name} imports the package's own front"
            if isinstance(node, ast.ImportFrom) and node.module == "tailscale":
                strangers = [a.name for a in node.names if not (ROOT / f"tailscale/{a.name}.py").exists()]
                assert not strangers, f"{name} takes {strangers} from the package's own front"


@of_every_module
def test_optional_libraries_come_through_one_door(name: str, tree: ast.Module) -> None:
    if name == "ts_base/optional.py":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            caught = ast.unparse(node.type)
            assert not any(kind in caught for kind in ("ImportError", "ModuleNotFound")), (
                f"{name}: ask ts_base.optional"
            )
        assert not (isinstance(node, ast.Attribute) and node.attr == "find_spec"), f"{name}: ask ts_base.optional"


# --- who reaches into whom ------------------------------------------------------------------------


def test_nobody_reaches_into_private_names() -> None:
    found = {f"{name}: {access}" for name, tree in MODULES.items() for access in private_access(tree)}
    hold("private names are used by their own file", found)


@pytest.mark.slow  # it reads all tests
def test_tests_reach_into_private_names_ever_less() -> None:
    for folder, count in private_access_of_tests().items():
        limit = PRIVATE_ACCESS_OF_TESTS.get(folder, 0)
        assert count <= limit, f"tests/{folder} reaches into {count} private names, {limit} are allowed"


def test_nothing_is_assigned_from_another_part() -> None:
    """A room or wing is told by a call or at construction. A field that others fill later is a wire nobody sees."""
    homes: dict[str, set[str]] = defaultdict(set)
    for name, tree in MODULES.items():
        for attribute in own_names(tree):
            homes[attribute].add(part_of(name))
    found = set()
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store) or is_self(node.value):
                continue
            belongs = homes.get(node.attr, set())
            if ast.unparse(node.value).endswith("scope"):  # trio's: a deadline is set this way
                continue
            if belongs and part_of(name) not in belongs and node.attr not in ASSIGNED_FROM_ABOVE:
                found.add(f"{name}: {ast.unparse(node)}")
    hold("what belongs to another part is not assigned", found)


def test_no_object_waits_for_its_parts() -> None:
    """No `attach`, and no field that is declared without a value and not filled by `__init__`."""
    found = set()
    for name, tree in MODULES.items():
        if name in MADE_BY_ENTERING:
            continue
        known: dict[str, set[str]] = {}  # what base classes of the same file have; a subclass may only say it narrower
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                inherited = set().union(*(known.get(ast.unparse(base), set()) for base in node.bases))
                waits = unfilled(node) - inherited
                known[node.name] = inherited | own_names(node) - waits
                found |= {f"{name}: {node.name}.{part}" for part in waits}
    hold("an object is whole when it is made", found)


def unfilled(made: ast.ClassDef) -> set[str]:
    plain = {"NamedTuple", "Protocol", "Struct", "TypedDict"} | {"Lossy", "Reliable", "Retained"}  # these are Structs
    bases = {ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in made.bases}
    if bases & plain or any("dataclass" in ast.unparse(decorator) for decorator in made.decorator_list):
        return set()
    declared, filled = set(), set()
    for each in made.body:
        if isinstance(each, ast.AnnAssign) and each.value is None and "ClassVar" not in ast.unparse(each.annotation):
            declared.add(ast.unparse(each.target))
        elif isinstance(each, ast.FunctionDef) and each.name == "__init__":
            filled = {n.attr for n in ast.walk(each) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
            later = [n for n in ast.walk(each) if isinstance(n, ast.AnnAssign) and n.value is None]
            filled -= {n.target.attr for n in later if isinstance(n.target, ast.Attribute)}
            declared |= {n.target.attr for n in later if isinstance(n.target, ast.Attribute)}
    waits = {each.name for each in made.body if isinstance(each, ast.FunctionDef) and each.name == "attach"}
    return declared - filled | waits


# --- what a file looks like -----------------------------------------------------------------------


@of_every_module
def test_module_says_what_it_owns(name: str, tree: ast.Module) -> None:
    docstring = ast.get_docstring(tree)
    assert docstring, f"{name} has no opening that says what it owns"
    words = docstring.split("```")[0]  # a snippet after them is welcome
    assert len(words.splitlines()) <= 10, f"{name} opens with more than ten lines"


@of_every_module
def test_pure_modules_never_await(name: str, tree: ast.Module) -> None:
    if (name.startswith("tailscale/") and name not in PURE) or name in SHELLS:
        return
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not any(isinstance(node, waits) for node in ast.walk(tree)), f"{name} awaits"


@of_every_module
def test_functions_fit_a_screen(name: str, tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{name}: {node.name} has {length} lines"


def test_a_long_file_has_a_reason() -> None:
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in MODULES}
    long = {name for name, length in lengths.items() if length > LONGEST_FILE}
    assert not long - LONG_FILES.keys(), f"over {LONGEST_FILE} lines without a reason in LONG_FILES"
    assert not LONG_FILES.keys() - long, f"no longer over {LONGEST_FILE} lines: take it out of LONG_FILES"


def test_pure_files_exist() -> None:
    assert not PURE - MODULES.keys()


# --- the documents --------------------------------------------------------------------------------


def test_architecture_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for room in ROOMS:
        assert f"`{room}`" in text, f"ARCHITECTURE.md does not say what {room} is for"


def test_architecture_names_only_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    words = {w.strip("`(),.;:") for w in text.split()}
    for word in words:
        if word.endswith(".py") and "/" in word and not word.startswith("tests/*"):
            assert (ROOT / word).exists(), f"ARCHITECTURE.md names {word}, which does not exist"


def test_every_bus_message_says_who_sets_its_rate() -> None:
    kinds = [kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, Message)]
    published = [kind for kind in kinds if kind.__module__ == messages.__name__]
    assert len(published) > 10
    for kind in published:
        assert "rate" in vars(kind), f"{kind.__name__} does not say who decides how often it is published"
        if kind.rate is Rate.THEIRS:
            assert not issubclass(kind, Reliable), f"{kind.__name__} is Reliable at a rate of {Rate.THEIRS.value}"
