"""The recipes of docs/engines.md, each tried with the software itself: Ray, Spark, Kafka, and MongoDB's protocol.

`make interop` brings Kafka and MongoDB's, `bash tests/interop/install_engines.sh` Ray and Spark too; what is missing
skips its test with a loud line. Each runs in a network namespace of its own that leads nowhere.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.engines import ENGINES

pytestmark = [pytest.mark.interop, pytest.mark.root, pytest.mark.peerless]
ROOT = Path(__file__).parents[2]
# An address and a default route that lead nowhere: Ray asks the kernel which address the machine has.
NOWHERE = (
    "ip link set lo up && ip link add nowhere type veth peer name void && ip address add 192.0.2.1/24 dev nowhere && "
    "ip link set void up && ip link set nowhere up && ip route add default dev nowhere"
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ENGINES)
def test_engine_behind_expose_and_forward(name: str) -> None:
    lacking = ENGINES[name].lacking()
    if lacking:
        pytest.skip(f"ENGINE {name} SKIPPED: no {', '.join(lacking)}: bash tests/interop/install_engines.sh")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip(f"ENGINE {name} SKIPPED: needs root and unshare for a network namespace")
    inside = f"{NOWHERE} && exec {sys.executable} -m tests.interop.engines {name}"
    command = ["unshare", "--net", "sh", "-c", inside]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "connections" in done.stdout
