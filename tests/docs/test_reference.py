"""The API reference is what the docstrings say, and the docstrings say something of everything public."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from types import ModuleType

from snippets import ROOT

import tailscale

PUBLIC_MODULES = ("aio", "sync", "http", "mesh", "metrics", "web", "proxy", "dask", "daemon", "testing")
# Whose every member says what it does; the other faces have the same members, or those of a base class.
TOLD_IN_FULL = (
    *("device", "tcp_sockets", "udp_sockets", "nodes", "status"),
    *("events", "errors", "state_file", "testing/tailnet"),
)


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", ROOT / "docs" / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_current() -> None:
    there = {f"docs/reference/{path.name}" for path in (ROOT / "docs" / "reference").iterdir()} | {"docs/reference.md"}
    assert {path: (ROOT / path).read_text() for path in there} == generator().generate(), "run `make docs`"


def test_reference_names_everything_importable() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").iterdir())
    missing = []
    for module in (tailscale, *(importlib.import_module(f"tailscale.{name}") for name in PUBLIC_MODULES)):
        named = [name for name in module.__all__ if not name.isupper() and not name.startswith("__")]  # not constants
        named = [name for name in named if not inspect.ismodule(getattr(module, name))]  # they have a page
        missing += [f"{module.__name__}.{name}" for name in named if f"## `{name}`" not in pages]
    assert not missing, "add them to SECTIONS in docs/generate_reference.py"


def test_anchors_of_the_reference_are_those_of_the_names() -> None:
    """A second heading of the same name on a page would be `name-1` in one viewer and `name_1` in another."""
    for page in (ROOT / "docs" / "reference").iterdir():
        headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
        assert len(headings) == len(set(headings)), page.name


def test_everything_public_is_documented() -> None:
    made = generator()
    silent = []
    for _, file, names in made.SECTIONS:
        path = ROOT / file
        assert path.exists(), f"{file} is named in docs/generate_reference.py and not there"
        is_told_in_full = file.removeprefix("tailscale/").removesuffix(".py") in TOLD_IN_FULL
        for definition in made.wanted(path, names):
            members = [m for m in definition.body if isinstance(m, made.Definition)] if is_class(definition) else []
            nodes = [definition, *(m for m in members if made.is_public(m) and is_told_in_full)]
            silent += [f"{file}: {definition.name}.{n.name}" for n in nodes if ast.get_docstring(n) is None]
    assert not silent


def is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def test_links_between_pages_lead_somewhere() -> None:
    dead = []
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
    for page in pages:
        targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
        dead += [f"{page.name}: {t}" for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not dead
