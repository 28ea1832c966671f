"""The verb `cert` through a daemon and without one, and `cert/` of the local API."""

from __future__ import annotations

import stat
from functools import partial
from pathlib import Path

import httpx
import pytest
from daemon.daemon_scripts import World
from daemon.test_commands_hosted import run, wait_until

from tailscale.certificates import Certificate
from tailscale.certificates.control import DIRECTORY_VARIABLE
from tailscale.cli import main
from tailscale.daemon import parts
from tailscale.daemon.daemon import Daemon
from tailscale.daemon.durations import seconds_untrusted
from tailscale.daemon.settings import read_settings
from ts_base.errors import BadPacket


@pytest.fixture(autouse=True)
def directory(net: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the daemon, which is in this process, asks for certificates."""
    monkeypatch.setenv(DIRECTORY_VARIABLE, net.net.certificates.directory)


@pytest.fixture
def state(daemon: Daemon) -> list[str]:
    return ["--state", str(Path(daemon.places.state).parent)]


NAME = "keeper.tailnet.test"


def test_cert_writes_files_of_the_right_modes(daemon: Daemon, state: list[str], tmp_path: Path) -> None:
    name = NAME
    done = run("cert", *state, name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"private key for" in done.stderr
    chain, key = tmp_path / f"{name}.crt", tmp_path / f"{name}.key"
    assert [path.stat().st_mode & 0o777 for path in (chain, key)] == [0o644, 0o600]
    first = Certificate.read_untrusted(chain.read_bytes(), key.read_bytes())
    assert first.names == (name,)
    piped = run("cert", *state, name, "--cert-file", "-", "--key-file=-", cwd=tmp_path).stdout
    assert piped.strip() == (chain.read_bytes() + key.read_bytes()).strip()
    only = tmp_path / "only.crt"
    assert run("cert", *state, name, f"--cert-file={only}", "--min-validity", "2159h", cwd=tmp_path).returncode == 0
    assert only.read_bytes() == chain.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"{name}.crt", f"{name}.key", "only.crt"])


def test_cert_says_which_name_it_could_have(
    daemon: Daemon, state: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["cert", *state, "other.test"]) != 0
    assert f"only for {NAME}" in capfd.readouterr().err
    assert main(["cert", *state, "x.test", "--min-validity", "soon"]) == 2


def test_local_api_gives_the_pair_as_upstreams_clients_read_it(daemon: Daemon, state: list[str]) -> None:
    name, place = NAME, "/localapi/v0/cert/"

    with httpx.Client(
        transport=httpx.HTTPTransport(uds=daemon.places.socket), base_url="http://local-tailscaled.sock"
    ) as client:
        asked = [client.get(f"{place}{name}?{rest}").text for rest in ("type=pair&min_validity=0s", "type=key", "")]
        assert asked[0] == asked[1] + asked[2]
        assert asked[0].index("PRIVATE KEY") < asked[0].index("BEGIN CERTIFICATE")
        assert client.get(f"{place}{name}?type=crt").text == asked[2]
        for rest, code, sentence in (
            (f"{name}?type=p12", 400, "invalid type"),
            (f"{name}?min_validity=-1h", 400, "invalid validity parameter"),
            ("other.test", 500, f"only for {name}"),
        ):
            answer = client.get(place + rest)
            assert (answer.status_code, sentence in answer.text) == (code, True), answer.text


def test_settings_have_a_certificate_written_and_kept_new(
    net: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "CERTIFICATE_LOOK", 0.05)
    chain, key = tmp_path / "web.crt", tmp_path / "web.key"
    text = f'[[certificate]]\ncert_file = "{chain}"\nkey_file = "{key}"\n'
    key.write_text("an older one")
    key.chmod(0o644)
    with net.daemon(tmp_path / "state", read=lambda: read_settings(text, "config.toml")) as made:
        wait_until(chain.exists)
        first = chain.read_bytes()
        found = net.within(made.keeper.device.certificate)
        assert (first, key.read_bytes()) == (found.chain_pem, found.key_pem)
        assert (stat.S_IMODE(chain.stat().st_mode), stat.S_IMODE(key.stat().st_mode)) == (0o644, 0o600)
        net.within(partial(made.keeper.device.certificate, min_validity=found.chain.expires))  # more than there is
        wait_until(lambda: chain.read_bytes() != first)
        assert [part["state"] for part in made.parts.to_list() if part["kind"] == "certificate"] == ["running"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state", "web.crt", "web.key"]


def test_durations_are_go_s() -> None:
    for text, seconds in (("0", 0), ("720h", 2_592_000), ("1h30m", 5400), ("1.5s", 1.5), ("250ms", 0.25)):
        assert seconds_untrusted(text) == seconds
    for text in ("", "h", "-1h", "1", "1h ", "1d", "9" * 70 + "h", "1h" * 40):
        with pytest.raises(BadPacket):
            seconds_untrusted(text)
