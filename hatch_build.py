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

BILL = "pytailscale.cdx.json"
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(?:\[[^]]*\])?(?P<range>[^;]*)(?:;(?P<when>.*))?")
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
        if self.target_name != "wheel" or version == "editable":
            return
        project = self.metadata.core_raw_metadata
        self._kept = tempfile.TemporaryDirectory()
        bill = Path(self._kept.name, BILL)
        bill.write_text(json.dumps(bill_of_materials(project), indent=1) + "\n", encoding="utf-8")
        build_data["sbom_files"].append(str(bill))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if hasattr(self, "_kept"):
            self._kept.cleanup()


def bill_of_materials(project: dict[str, Any]) -> dict[str, Any]:
    """The `[project]` table as CycloneDX: itself, what it needs always, and what its extras add."""
    itself = f"pkg:pypi/{project['name']}@{project['version']}"
    wanted = {_name(each): _component(each, "required") for each in project["dependencies"]}
    for extra in project["optional-dependencies"].values():
        for each in extra:
            wanted.setdefault(_name(each), _component(each, "optional"))
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
        "components": [wanted[name] for name in sorted(wanted)],
        "dependencies": [{"ref": itself, "dependsOn": [f"pkg:pypi/{name}" for name in sorted(wanted)]}],
    }


def _name(requirement: str) -> str:
    """As package registries compare names (PEP 503)."""
    found = REQUIREMENT.match(requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found["name"]).lower()


def _component(requirement: str, scope: str) -> dict[str, Any]:
    """Something that is not in the wheel: its version is a range, in the order that VERS asks for."""
    found, name = REQUIREMENT.match(requirement), _name(requirement)
    assert found is not None
    bounds = sorted((bound.strip() for bound in found["range"].split(",")), key=lambda bound: bound.startswith("<"))
    component = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}",
        "name": name,
        "versionRange": "vers:pypi/" + "|".join(bounds),
        "isExternal": True,
        "scope": scope,
        "purl": f"pkg:pypi/{name}",
    }
    if found["when"]:
        component["properties"] = [{"name": "pytailscale:marker", "value": found["when"].strip()}]
    return component
