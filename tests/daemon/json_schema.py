"""As much of JSON Schema as our schemas use; a keyword that is not here fails."""

from __future__ import annotations

from typing import Any

TYPES: dict[str, Any] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None),
    "array": list, "object": dict,
}  # fmt: skip
KNOWN = {
    "$schema", "title", "description", "type", "properties", "required", "additionalProperties", "items", "enum",
    "anyOf",     "$ref", "$defs",
}  # fmt: skip


def check(value: Any, schema: dict[str, Any], root: dict[str, Any] | None = None, where: str = "$") -> None:
    """Raises AssertionError where `value` is not what `schema` says."""
    root = root if root is not None else schema
    assert schema.keys() <= KNOWN, f"{where}: keywords {schema.keys() - KNOWN}"
    if "$ref" in schema:
        check(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root, where)
        return
    if "anyOf" in schema:
        assert any(_fits(value, each, root, where) for each in schema["anyOf"]), f"{where}: {value!r} fits none"
        return
    if "enum" in schema:
        assert value in schema["enum"], f"{where}: {value!r}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    right = any(isinstance(value, TYPES[kind]) and (kind == "boolean" or type(value) is not bool) for kind in kinds)
    assert right or not kinds, f"{where}: {value!r} is not {kinds}"
    if isinstance(value, dict):
        _check_object(value, schema, root, where)
    if isinstance(value, list):
        for number, each in enumerate(value):
            check(each, schema["items"], root, f"{where}[{number}]")


def _check_object(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], where: str) -> None:
    properties = schema.get("properties", {})
    missing = set(schema.get("required", ())) - value.keys()
    assert not missing, f"{where} lacks {missing}"
    for name, each in value.items():
        other = schema.get("additionalProperties", {})
        assert name in properties or other is not False, f"{where} has {name}, which the schema does not know"
        check(each, properties.get(name, other), root, f"{where}.{name}")


def _fits(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str) -> bool:
    try:
        check(value, schema, root, where)
    except AssertionError:
        return False
    return True
