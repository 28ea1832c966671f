"""What is made as the wheel and the source archive are built: what PyPI shows, and the wheel's bill of materials.

Owns the long description. `[project.urls] Source` of pyproject.toml is the one place that says where the repository
is; while it says nothing, relative links become their words, for they would lead nowhere. The bill is CycloneDX 1.7,
in `.dist-info/sboms` as PEP 770 asks: what is in the wheel, which is our own code, and what it wants beside it, by the
ranges that pyproject.toml names. It bears neither date nor serial number: two builds are the same bytes.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BILL = "pytailscale.cdx.json"
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


class Bill(BuildHookInterface[Any]):
    """Puts the bill of materials into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        self._folder = tempfile.TemporaryDirectory()  # goes with the hook
        bill = Path(self._folder.name, BILL)
        text = json.dumps(bill_of_materials(self.metadata.core_raw_metadata), indent=1)
        bill.write_text(text + "\n", encoding="utf-8")
        build_data["sbom_files"].append(str(bill))


def bill_of_materials(project: dict[str, Any]) -> dict[str, Any]:
    """The `[project]` table as CycloneDX: itself, what it needs always, and what its extras add."""
    itself = f"pkg:pypi/{project['name']}@{project['version']}"
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    wanted: dict[str, dict[str, Any]] = {}
    for scope, requirements in (("required", project["dependencies"]), ("optional", extras)):
        for component in (_component(Requirement(each), scope) for each in requirements):
            wanted.setdefault(component["purl"], component)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": itself,
                "name": project["name"],
                "version": project["version"],
                "description": project["description"],
                "licenses": [{"license": {"id": project["license"]}}],
                "purl": itself,
            }
        },
        "components": [wanted[purl] for purl in sorted(wanted)],
        "dependencies": [{"ref": itself, "dependsOn": sorted(wanted)}],
    }


def _component(wanted: Requirement, scope: str) -> dict[str, Any]:
    """Something that is not in the wheel: its version is a range, in the order that VERS asks for."""
    name = canonicalize_name(wanted.name)
    bounds = sorted(map(str, wanted.specifier), key=lambda bound: bound.startswith("<"))
    component = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}",
        "name": name,
        "versionRange": "vers:pypi/" + "|".join(bounds),
        "isExternal": True,
        "scope": scope,
        "purl": f"pkg:pypi/{name}",
    }
    if wanted.marker:
        component["properties"] = [{"name": "pytailscale:marker", "value": str(wanted.marker)}]
    return component
