#!/bin/sh
# The lower bounds in pyproject.toml are promises: install exactly the lowest versions they allow, on the oldest Python,
# and run the fast tests. `sh .ci/lowest.sh [pytest arguments]`; PYTHON= picks the interpreter, LOWEST_VENV= the place.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3.11}
venv=${LOWEST_VENV:-.venv-lowest}

"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "needs Python 3.11; set PYTHON="; exit 2; }
rm -rf "$venv"
"$python" -m venv "$venv"
"$python" - > "$venv/lowest.txt" <<'PINS'
"""Every `name>=version` of pyproject.toml as `name==version`; what is pinned already stays as it is."""
import re
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
tools = {"ruff", "mypy"}  # they judge the source, not the running program
listed = list(project["project"]["dependencies"])
for extra in project["project"]["optional-dependencies"].values():
    listed += extra
listed += [text for text in project["dependency-groups"]["dev"] if re.match(r"[\w.-]+", text)[0] not in tools]
for text in dict.fromkeys(listed):
    requirement, _, marker = text.partition(";")
    name, pin, version = re.fullmatch(r"([\w.-]+)(?:\[[^]]*\])?\s*(>=|==)\s*([\w.]+).*", requirement.strip()).groups()
    print(f"{name}=={version}" + (f"; {marker.strip()}" if marker else ""))
PINS
"$venv/bin/python" -m pip install -q --disable-pip-version-check -r "$venv/lowest.txt"
"$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps -e .
"$venv/bin/python" -m pip check
sort "$venv/lowest.txt"
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider -m 'not slow and not interop and not root' "$@"
