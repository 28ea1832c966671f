"""What the verbs of a mesh promise to a type checker, on all three faces: mypy reads typed_meshes.py strictly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_types_of_messages_and_stores_are_known_on_every_face() -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(HERE / "typed_meshes.py")]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)
