"""Completions as zsh and fish themselves offer them, and OpenSSH through `pytailscale nc`."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailscale import sync
from tailscale.cli.completion import fish, read_parser, zsh
from tailscale.testing.threaded import TailnetThread
from tests.interop.processes import PORTS

pytestmark = pytest.mark.interop
PATIENCE = 30.0
LINES = [
    ("pytailscale sta", {"status"}),
    ("pytailscale ping d", {"db", "desk"}),
    ("pytailscale nc d", {"db", "desk"}),
    ("pytailscale ping --kind ts", {"tsmp"}),
    ("pytailscale status --onl", {"--online"}),
    ("pytailscale --plain sta", {"status"}),
    ("pytailscale --state x ping d", {"db", "desk"}),
    ("pytailscale completion f", {"fish"}),
    ("pytailscale up --config com", {"complete.me"}),
]
# Hits go to a file instead of the screen; `exit` ends the shell when the first completion is over.
ZSHRC = """
PROMPT=
autoload -Uz compinit
compinit -u -d $ZDOTDIR/dump
source $ZDOTDIR/script
compadd () {
    if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\\ * ]]; then builtin compadd "$@"; return $?; fi
    local -a hits
    builtin compadd -A hits "$@"
    print -rl -- $hits >> $ZDOTDIR/hits
    builtin compadd "$@"
}
comppostfuncs=(exit)
bindkey '^I' complete-word
print ready > $ZDOTDIR/ready
"""


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip(f"SHELLS SKIPPED: no {program} here: bash tests/interop/install_servers.sh")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `pytailscale completion peers` says db and desk."""
    (tmp_path / "complete.me").touch()
    tool = tmp_path / "bin" / "pytailscale"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho db\necho desk\n")
    tool.chmod(0o755)
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
    return kept | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder), "TERM": "xterm"}


@pytest.mark.parametrize(("line", "words"), LINES)
def test_fish_offers_what_fits(line: str, words: set[str], folder: Path) -> None:
    needs("fish")
    (folder / "script").write_text(fish(read_parser()))
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source script; complete -C '{line}'"],
        capture_output=True, text=True, check=True, env=environment(folder), cwd=folder, timeout=PATIENCE,
    )  # fmt: skip
    assert {row.partition("\t")[0] for row in done.stdout.splitlines()} == words, done.stderr


@pytest.mark.parametrize(("line", "words"), LINES)
def test_zsh_offers_what_fits(line: str, words: set[str], folder: Path) -> None:
    needs("zsh")
    (folder / ".zshrc").write_text(ZSHRC)
    (folder / "script").write_text(zsh(read_parser()))
    ours, theirs = os.openpty()
    shell = subprocess.Popen(
        ["zsh", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, start_new_session=True,
        env=environment(folder) | {"ZDOTDIR": str(folder)},
    )  # fmt: skip
    os.close(theirs)
    reading = threading.Thread(target=drain, args=(ours,))
    reading.start()
    wait_for(folder / "ready")
    os.write(ours, f"{line}\t".encode())
    shell.wait(PATIENCE)
    reading.join(PATIENCE)
    os.close(ours)
    found = (folder / "hits").read_text().split()
    assert set(found) == words


def drain(terminal: int) -> None:
    with contextlib.suppress(OSError):  # how Linux says that nobody has the other end
        while os.read(terminal, 65536):
            pass


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.01)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_shell_itself_finds_no_mistake(shell: str, folder: Path) -> None:
    needs(shell)
    (folder / "script").write_text({"zsh": zsh, "fish": fish}[shell](read_parser()))
    subprocess.run([shell, "-n", "script"], check=True, cwd=folder, timeout=PATIENCE)


# OpenSSH


@pytest.fixture
def door(tmp_path: Path) -> Iterator[int]:
    """An sshd on loopback with a key of its own, and one for the user."""
    needs("ssh", "ssh-keygen", "sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    (tmp_path / "authorized").write_bytes((tmp_path / "user.pub").read_bytes())
    port = PORTS.take()
    with contextlib.suppress(PermissionError):
        Path("/run/sshd").mkdir(exist_ok=True)
    server = ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", str(tmp_path / "host"), "-p", str(port)]
    for option in ("ListenAddress=127.0.0.1", f"AuthorizedKeysFile={tmp_path / 'authorized'}", "StrictModes=no",
                   "PidFile=none", "PermitRootLogin=yes"):  # fmt: skip
        server += ["-o", option]
    with subprocess.Popen(server, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert time.monotonic() < deadline, "sshd does not listen"
            time.sleep(0.01)
        yield port
        process.terminate()


def test_openssh_reaches_a_peer_through_nc(door: int, tmp_path: Path) -> None:
    """docs/cli.md: `ssh -o ProxyCommand='pytailscale nc %h %p' db`."""
    with TailnetThread() as net, sync.Device("db", **net.options()) as db, db.expose(22, local_port=door):
        command = f"{sys.executable} -m tailscale.cli --ephemeral nc %h %p"
        done = subprocess.run(
            ["ssh", "-T", "-F", "/dev/null", "-i", str(tmp_path / "user"), "-o", f"ProxyCommand={command}",
             "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={tmp_path / 'known'}", "db",
             "head -c 4194304 /dev/zero | wc -c; exit 7"],
            capture_output=True, timeout=60, check=False,
            env=os.environ | {"TS_CONTROL_URL": net.control_url, "TS_AUTHKEY": net.auth_key()},
        )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (7, b"4194304"), done.stderr
