"""The import table of ARCHITECTURE.md, held as data. A failure is the sentence it breaks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("tailscale", "ts_base", "ts_control", "ts_dataplane", "ts_derp", "ts_netstack", "ts_tunnel")
MAY_IMPORT = {
    "tailscale": set(ROOMS),
    "ts_control": {"ts_base"},
    "ts_derp": {"ts_base"},
    "ts_netstack": {"ts_base"},
    "ts_dataplane": {"ts_base", "ts_tunnel"},
    "ts_tunnel": {"ts_base"},
    "ts_base": set(),
}
SHELLS = {"ts_control/client.py", "ts_control/connection.py", "ts_derp/client.py", "ts_derp/dial.py"}
AMBIENT = {
    "trio", "time", "socket", "ssl", "random", "secrets", "os", "asyncio", "threading", "select", "subprocess",
    "urllib.request", "logging",
}  # fmt: skip
ALLOWED_AMBIENT = {
    "ts_base/ip.py": {"socket"},  # inet_ntop: text forms, no sockets
    "ts_derp/trust.py": {"ssl"},  # contexts: what to believe, no streams
}
FACADES = {"http", "aio", "sync", "testing", "cli", "proxy", "mesh"}
PURE = {
    *("tailscale/nodes.py", "tailscale/status.py", "tailscale/dns/names.py", "tailscale/dial/failures.py"),
    *("tailscale/runtime/translate_peers.py", "tailscale/runtime/translate_relays.py"),
    "tailscale/runtime/translate_tables.py",
}
# Wings of the package, and which of the others each may import; modules in no wing are for everybody.
BELOW: dict[str, set[str]] = {
    "tailscale.runtime": set(),
    "tailscale.sockets": set(),
    "tailscale.dns": set(),
    "tailscale.dial": {"tailscale.runtime", "tailscale.sockets", "tailscale.dns"},
    "tailscale._diagnostics": {"tailscale.runtime", "tailscale.dns"},
    "tailscale._assembly": {"tailscale.runtime", "tailscale.dial", "tailscale.dns"},
    "tailscale.device": {
        *("tailscale.runtime", "tailscale.sockets", "tailscale.dial", "tailscale._assembly", "tailscale._diagnostics"),
    },
}
ONLY_IN = {
    "h2": {"ts_control/http2.py"},
    "noise": {"ts_control/handshake.py", "ts_tunnel/handshake.py", "ts_base/noise.py"},
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a thing lives"
            yield node.module or ""


MODULES = list(modules())


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_module_keeps_the_import_table(name: str, tree: ast.Module) -> None:
    room = name.split("/")[0]
    for imported in imports(tree):
        top = imported.split(".")[0]
        if top in ROOMS and top != room:
            assert top in MAY_IMPORT[room], (
                f"{name} imports {imported}: {room} may import {MAY_IMPORT[room] or 'no room'}"
            )
        if room != "tailscale" and name not in SHELLS:
            allowed = ALLOWED_AMBIENT.get(name, set())
            banned = {imported, top} & (AMBIENT - allowed)
            assert not banned, f"{name} imports {imported}: a sans-IO room takes time, entropy and bytes as arguments"
        if top in ONLY_IN:
            assert name in ONLY_IN[top], f"{name} imports {imported}: only {', '.join(sorted(ONLY_IN[top]))} may"


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_module_says_what_it_owns(name: str, tree: ast.Module) -> None:
    docstring = ast.get_docstring(tree)
    assert docstring, f"{name} has no opening that says what it owns"
    words = docstring.split("```")[0]  # a snippet after them is welcome
    assert len(words.splitlines()) <= 10, f"{name} opens with more than ten lines"


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_pure_modules_never_await(name: str, tree: ast.Module) -> None:
    if name.startswith("tailscale/") or name in SHELLS:
        return
    waits = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert not any(isinstance(node, waits) for node in ast.walk(tree)), f"{name} awaits"


def test_nobody_inside_imports_the_shop_window() -> None:
    for name, tree in MODULES:
        if name.split("/")[0] != "tailscale" or name.split("/")[1].removesuffix(".py") in FACADES:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert all(alias.name != "tailscale" for alias in node.names), f"{name} imports the package's own front"
            if isinstance(node, ast.ImportFrom) and node.module == "tailscale":
                strangers = [a.name for a in node.names if not (ROOT / f"tailscale/{a.name}.py").exists()]
                assert not strangers, f"{name} takes {strangers} from the package's own front"


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


def wing_of(name: str) -> str:
    """The first that fits of the names in BELOW: `tailscale.dial.choose` is of `tailscale.dial`."""
    return next((wing for wing in BELOW if name == wing or name.startswith(f"{wing}.")), "")


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_no_import_of_a_wing_runs_up(name: str, tree: ast.Module) -> None:
    module = name.removesuffix(".py").replace("/", ".")
    wing = wing_of(module)
    for imported in imports(tree) if wing else ():
        found = wing_of(imported)
        assert found in {"", wing} | BELOW[wing], f"{module} imports {imported}, and {wing} stands below {found}"


def test_pure_files_of_the_package_know_no_loop() -> None:
    for name, tree in MODULES:
        if name in PURE:
            banned = {imported for imported in imports(tree) if imported.split(".")[0] in AMBIENT}
            assert not banned, f"{name} imports {banned}: it translates, and neither waits nor looks at the world"
    assert set(PURE) <= {name for name, _ in MODULES}
