"""Names of drops: one grammar, one page that says what each means, and none that nothing counts.

Reads the source. Where a name is put together, its constant part counts as the beginning of one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from source import ROOMS, ROOT, modules

GRAMMAR = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")
TABLE_ROW = re.compile(r"^\| `([^`]+)` \| .", re.MULTILINE)
SOURCES = modules(*ROOMS)


def names_and_patterns() -> set[str]:
    """What docs/drops.md explains; a `*` stands for a word that is known only when it happens."""
    return set(TABLE_ROW.findall((ROOT / "docs" / "drops.md").read_text()))


def pattern_of(key: ast.expr) -> str | None:
    """A name as the documents write it; None where it is a variable."""
    if isinstance(key, ast.Constant) and isinstance(key.value, str):
        return key.value
    if isinstance(key, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in key.values)
    return None


def is_drops(node: ast.expr) -> bool:
    """`drops`, `self._drops`, `self._ledger.drops`."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.lstrip("_") == "drops"


def constants_of(tree: ast.Module) -> dict[str, str]:
    """The texts that a file gives names to."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def keys_of(tree: ast.Module) -> Iterator[str]:
    """What is written between the brackets behind a counter of drops: texts, and this file's names of texts."""
    constants = constants_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and is_drops(node.value):
            for key in (node.slice.body, node.slice.orelse) if isinstance(node.slice, ast.IfExp) else (node.slice,):
                name = constants.get(key.id) if isinstance(key, ast.Name) else pattern_of(key)
                if name is not None:
                    yield name


COUNTED_BY_NAME = {(key, path) for path, tree in SOURCES.items() for key in keys_of(tree)}
COUNTING_ROOMS = {key.partition(".")[0] for key, _ in COUNTED_BY_NAME} | {"filter", "tunnel"}  # from files of names


METRICS = "tailscale/metrics/table.py"  # names levels too, which look the same; its own test looks at its drops


def names_in(tree: ast.AST) -> set[str]:
    """Every text that looks like the name of a drop, wherever it is: names are passed on as values. Not of levels."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).endswith(".levels.get")]
    levels = {id(argument) for call in calls for argument in call.args}
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in levels)
    texts = {n.value for n in constants if isinstance(n.value, str)}
    return {text for text in texts if GRAMMAR.fullmatch(text) and text.partition(".")[0] in COUNTING_ROOMS}


def test_every_counter_is_named_by_room_and_reason() -> None:
    wrong = {f"{key} in {path}" for key, path in COUNTED_BY_NAME if not GRAMMAR.fullmatch(key.replace("*", "x"))}
    assert not wrong


def all_counted() -> set[str]:
    others = [tree for path, tree in SOURCES.items() if path != METRICS]
    return {key for key, _ in COUNTED_BY_NAME}.union(*map(names_in, others))


def test_every_name_is_explained() -> None:
    explained, counted = names_and_patterns(), all_counted()
    missing = {name for name in counted if not any(known.startswith(name) for known in explained)}
    assert not missing, f"say in docs/drops.md what these mean: {sorted(missing)}"


def test_every_explained_name_is_counted() -> None:
    explained, counted = names_and_patterns(), all_counted()
    beginnings = tuple(counted - explained)  # the source puts the rest behind them
    gone = {name for name in explained - counted if not name.startswith(beginnings)}
    assert not gone, f"nothing counts these: {sorted(gone)}"


def test_every_constant_that_names_a_drop_is_used() -> None:
    used: set[str] = set()
    for tree in SOURCES.values():
        used |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        used |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    unused = {
        f"{target.id} in {path}"
        for path, tree in SOURCES.items()
        for node in tree.body
        if isinstance(node, ast.Assign) and names_in(node.value)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id not in used
    }
    assert not unused


def test_every_number_that_begins_at_zero_is_moved_somewhere() -> None:
    """An attribute set to 0 or an empty Counter, that nothing else ever assigns or adds to, is a promise unkept."""
    begun: dict[str, str] = {}
    moved: set[str] = set()
    for path, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.AugAssign):
                target = node.target.value if isinstance(node.target, ast.Subscript) else node.target
                moved |= {target.attr} if isinstance(target, ast.Attribute) else set()
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for one in (each for target in targets for each in ast.walk(target)):
                    if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store):
                        if is_nothing(node.value):
                            begun[one.attr] = path
                        else:
                            moved.add(one.attr)
    assert begun
    never = {f"{name} in {path}" for name, path in begun.items() if name not in moved}
    assert not never


def is_nothing(value: ast.expr | None) -> bool:
    is_zero = isinstance(value, ast.Constant) and type(value.value) in (int, float) and not value.value
    return is_zero or (isinstance(value, ast.Call) and ast.unparse(value) == "Counter()")
