"""NATs of the virtual internet: a router that translates the UDP of the one host behind it.

Owns mappings and what is let in. TCP passes as if there were no router, as it does from inside through any.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

from ts_base.who import Direct

Kind = Literal["easy", "hard"]
FIRST_PORT, LAST_PORT = 1024, 65_535
MAPPING_LIFE = 120.0  # seconds without a datagram from inside
MAX_MAPPINGS = 65_536


@dataclass(eq=False, slots=True)
class VirtualRouter:
    """Lets in what answers something sent to exactly there. A hard one uses another port for every destination."""

    public: str
    kind: Kind
    chance: random.Random
    _ports: dict[tuple[Direct, Direct | None], int] = field(default_factory=dict)
    _inside: dict[int, Direct] = field(default_factory=dict)
    _opened: dict[tuple[int, Direct], float] = field(default_factory=dict)  # until when

    def outbound(self, source: Direct, destination: Direct, now: float) -> Direct:
        """Where the datagram seems to come from, outside."""
        key = source, destination if self.kind == "hard" else None
        port = self._ports.get(key)
        if port is None:
            if len(self._ports) >= MAX_MAPPINGS // 2:
                self.forget()
            port = self._ports[key] = self._free_port(source[1])
            self._inside[port] = source
        self._opened[port, destination] = now + MAPPING_LIFE
        return self.public, port

    def _free_port(self, wanted: int) -> int:
        while self.kind == "hard" or wanted in self._inside:
            wanted = self.chance.randint(FIRST_PORT, LAST_PORT)
            if wanted not in self._inside:
                break
        return wanted

    def inbound(self, source: Direct, port: int, now: float) -> Direct | None:
        """Whom a datagram from outside is for; None where nothing has asked for it."""
        return self._inside.get(port) if self._opened.get((port, source), 0.0) > now else None

    def forget(self) -> None:
        """As after a restart: no mapping is left."""
        self._ports.clear()
        self._inside.clear()
        self._opened.clear()
