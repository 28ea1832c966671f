"""What PyPI shows: the README, with links that lead somewhere from there.

Owns the long description of wheel and source archive. `[project.urls] Source` of pyproject.toml is the one place that
says where the repository is; while it says nothing, relative links become their words, for they would lead nowhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(?P<image>!?)\[(?P<words>[^\]]*)\]\((?!https?:|mailto:|#)(?P<target>[^)\s]+)\)")


class LongDescription(MetadataHookInterface):
    """`dynamic = ["readme"]` asks for it."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source", "")
        metadata["readme"] = {"content-type": "text/markdown", "text": long_description(text, source)}


def long_description(readme: str, source: str) -> str:
    """The README as it reads away from its repository, whose address `source` is, if it has one."""

    def elsewhere(link: re.Match[str]) -> str:
        if not source:
            return link["words"]
        kind = "raw" if link["image"] else "blob"
        return f"{link['image']}[{link['words']}]({source.rstrip('/')}/{kind}/HEAD/{link['target']})"

    return RELATIVE.sub(elsewhere, readme)
