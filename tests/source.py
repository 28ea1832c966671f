"""The source as syntax trees, for tests and scripts that hold rules about it: who imports whom, who reaches into whom.

`python -m tests.source` prints how often each folder of tests reaches into private names of the product.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = (
    *("tailscale", "ts_acme", "ts_base", "ts_control", "ts_dataplane", "ts_derp"),
    *("ts_lock", "ts_mesh", "ts_netstack", "ts_proxy", "ts_tunnel"),
)
NAMED_TUPLES_OWN = {"_replace", "_asdict", "_fields", "_make"}  # underscored by the library, public by its manual


def modules(*folders: str) -> dict[str, ast.Module]:
    """Every file below these folders, by its path from the root."""
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules a file names, wherever in it: inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a thing lives"
            yield from modules_named(node)


def modules_named(node: ast.ImportFrom) -> Iterator[str]:
    """`from package import module` names the module, `from module import name` the module."""
    folder = ROOT / (node.module or "").replace(".", "/")
    inner = [
        alias.name for alias in node.names if (folder / f"{alias.name}.py").exists() or (folder / alias.name).is_dir()
    ]
    yield from (f"{node.module}.{name}" for name in inner)
    if len(inner) < len(node.names):
        yield node.module or ""


def file_of(module: str) -> str | None:
    """The file of a module of ours."""
    for path in (module.replace(".", "/") + ".py", module.replace(".", "/") + "/__init__.py"):
        if (ROOT / path).exists() and module.split(".")[0] in ROOMS:
            return path
    return None


def own_names(tree: ast.AST) -> set[str]:
    """Attributes and methods this file's classes have themselves."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_self(node.value) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                    names.add(each.target.id)
                elif isinstance(each, ast.Assign):
                    names.update(target.id for target in each.targets if isinstance(target, ast.Name))
                elif isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                    names.add(each.name)
    return names


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_access(tree: ast.AST) -> Iterator[str]:
    """`other._name`, where `_name` belongs to no class of this file."""
    own = own_names(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or is_self(node.value) or node.attr in NAMED_TUPLES_OWN:
            continue
        if node.attr.startswith("_") and not node.attr.startswith("__") and node.attr not in own:
            if not (isinstance(node.value, ast.Name) and node.value.id in sys.stdlib_module_names):
                yield ast.unparse(node)


def private_access_of_tests() -> Counter[str]:
    """How often, by folder of tests."""
    counts: Counter[str] = Counter()
    for name, tree in modules("tests").items():
        counts[name.split("/")[1] if name.count("/") > 1 else "."] += len(list(private_access(tree)))
    return +counts


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of files in which each reaches each (Tarjan's strongly connected components of more than one)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in graph.get(name, ()):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(set(group))

    for name in graph:
        if name not in number:
            visit(name)
    return found


if __name__ == "__main__":
    for folder, count in sorted(private_access_of_tests().items()):
        print(f"{folder:<16}{count}")
