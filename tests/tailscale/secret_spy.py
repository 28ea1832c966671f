"""A spy that knows every secret of a test and finds it in whatever was printed, logged or raised."""

from __future__ import annotations

import base64
import json
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from ts_base.keys import PrivateKey, clamp


@dataclass
class Spy:
    """What must not be seen, and everything that was seen."""

    secrets: set[bytes] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)

    def see(self, *things: object) -> None:
        for thing in things:
            self.seen += [repr(thing), str(thing)]
            if hasattr(thing, "to_dict"):
                self.seen.append(json.dumps(thing.to_dict()))

    async def failing(self, deed: Callable[[], Awaitable[object]]) -> None:
        try:
            await deed()
        except Exception as error:
            self.see(error)
            self.seen.append("".join(traceback.format_exception(error)))
        else:
            pytest.fail("it worked")

    def forbidden(self) -> dict[str, str]:
        """Every form in which a secret might show, and what it is."""
        forms = dict.fromkeys(self.words, "a word")
        for raw in self.secrets:
            for key in {raw, clamp(raw)}:
                text = base64.b64encode(key).decode().rstrip("=")
                forms |= {
                    key.hex(): "hex",
                    text: "base64",
                    text.replace("+", "-").replace("/", "_"): "url-safe base64",
                    repr(key)[2:-1]: "repr",
                }
        return forms

    def check(self, log: str) -> None:
        everything = "\n".join([*self.seen, log])
        lowered = everything.lower()
        for form, kind in self.forbidden().items():
            assert form not in everything, f"{kind}: {form}"
            assert kind != "hex" or form not in lowered

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Learns every private key that is made from now on."""
        made = PrivateKey.__init__

        def remember(key: PrivateKey, raw: bytes) -> None:
            made(key, raw)
            self.secrets.add(bytes(raw))

        monkeypatch.setattr(PrivateKey, "__init__", remember)
