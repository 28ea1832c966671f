"""HuJSON, the JSON people write policies in: `//` and `/* */` comments, trailing commas, nothing else.

Owns turning that text into what `json` accepts, with every line kept in its place so that errors point at the right
one. Knows nothing of policies.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ts_base.errors import BadPacket

MAX_TEXT = 1 << 20

# A string is matched first, so that nothing inside quotes is ever taken for a comment or a comma.
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_TRAILING_COMMA = re.compile(r'"(?:[^"\\\n]|\\.)*"|,(?=\s*[\]}])', re.DOTALL)


def _blank(match: re.Match[str]) -> str:
    token = match.group()
    return token if token[0] == '"' else re.sub(r"[^\n]", " ", token)


def parse_untrusted(text: str) -> Any:
    """The value `text` stands for; BadPacket with line and column on anything that is not HuJSON."""
    if len(text) > MAX_TEXT:
        raise BadPacket(f"text longer than {MAX_TEXT} characters")
    plain = _TRAILING_COMMA.sub(_blank, _TOKEN.sub(_blank, text))
    try:
        return json.loads(plain)
    except json.JSONDecodeError as problem:
        raise BadPacket(f"line {problem.lineno} column {problem.colno}: {problem.msg}") from None
    except (RecursionError, ValueError) as problem:
        raise BadPacket(f"not HuJSON: {type(problem).__name__}") from None
