"""The slow list that `ts_dataplane.bart` must agree with: every prefix is looked at, every time."""

from __future__ import annotations

from typing import Any

from ts_base.ip import Prefix, prefix_contains


class SlowBart:
    def __init__(self) -> None:
        self.routes: dict[Prefix, Any] = {}

    def insert(self, prefix: Prefix, value: Any) -> None:
        self.routes[prefix] = value

    def delete(self, prefix: Prefix) -> bool:
        return self.routes.pop(prefix, None) is not None

    def get(self, prefix: Prefix) -> Any:
        return self.routes.get(prefix)

    def lookup_all(self, address: bytes) -> list[Any]:
        covering = [prefix for prefix in self.routes if prefix_contains(prefix, address)]
        return [self.routes[prefix] for prefix in sorted(covering, key=lambda prefix: -prefix[1])]

    def lookup(self, address: bytes) -> Any:
        found = self.lookup_all(address)
        return found[0] if found else None
