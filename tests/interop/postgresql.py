"""A PostgreSQL of our own on this machine, for as long as it is wanted; and servers that say when they are ready."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.interop.processes import PORTS

POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@contextlib.contextmanager
def running(command: list[str], port: int, ready: str) -> Iterator[int]:
    """A server, once it has said these words."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        try:
            for line in process.stdout:
                said.append(line)
                if ready in line:
                    break
            else:
                raise RuntimeError(f"{command} ended: {''.join(said)}")
            drain = threading.Thread(target=process.stdout.read)  # or its pipe would fill
            drain.start()
            yield port
        finally:
            process.terminate()
        drain.join()


@contextlib.contextmanager
def cluster() -> Iterator[int]:
    """A new cluster with the user `app`; its port on loopback."""
    home, become, port = Path(tempfile.mkdtemp(prefix="pytailscale-postgres-")), [], PORTS.take()
    try:
        if os.geteuid() == 0:  # PostgreSQL refuses root
            become = ["runuser", "-u", "postgres", "--"]
            shutil.chown(home, "postgres")
        make = [*become, f"{POSTGRES}/initdb", "-D", f"{home}/data", "-A", "trust", "-U", "app", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, cwd="/")
        options = ["-D", f"{home}/data", "-p", str(port), "-k", str(home), "-h", "127.0.0.1", "-F"]
        with running([*become, f"{POSTGRES}/postgres", *options], port, "ready to accept connections"):
            yield port
    finally:
        shutil.rmtree(home, ignore_errors=True)
