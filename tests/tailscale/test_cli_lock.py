"""`pytailscale lock`, by a device that joins for it, against a locked tailnet on loopback."""

from __future__ import annotations

import json

import pytest

from tailscale.cli import main
from tailscale.daemon.locks import status_json
from tailscale.testing.threaded import TailnetThread


@pytest.mark.slow
def test_lock_shows_who_is_locked_out_signs_and_tells_what_was_changed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TS_AUTHKEY", "TS_AUTH_KEY", "TS_CONTROL_URL", "TS_HOSTNAME"):
        monkeypatch.delenv(name, raising=False)
    with TailnetThread() as net:
        join = ["--control-url", net.options()["control_url"], "--ephemeral", "--auth-key"]
        assert main(["lock", *join, net.options()["auth_key"]]) == 0
        assert capsys.readouterr().out.startswith("This tailnet has no lock.\n")
        lock = net.do(net.inner.lock)
        assert main(["lock", "status", *join, net.options()["auth_key"]]) == 0
        shown = capsys.readouterr().out
        assert f"locked, at {lock.head}" in shown
        assert "This device is LOCKED OUT: its node key is not signed." in shown
        key = lock.wrap(net.options()["auth_key"])
        assert main(["lock", "--json", *join, key]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["enabled"], found["our_node_signed"], "log" in found) == (True, True, False)
        assert main(["lock", "log", *join, net.options()["auth_key"]]) == 0
        assert capsys.readouterr().out.split()[:2] == [lock.head, "checkpoint"]
        assert main(["lock", "sign", "nobody", *join, net.options()["auth_key"]]) != 0
        assert "nobody" in capsys.readouterr().err


def test_lock_sign_without_a_node_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lock", "sign"]) == 2
    assert main(["lock", "log", "db"]) == 2
    assert "lock sign NODE" in capsys.readouterr().err


def test_status_for_stock_clients_says_all_without_a_netmap() -> None:
    from tailscale.lock import LockStatus

    status = LockStatus(False, "", "tlpub:" + "0" * 64, True, "", (), (), ())
    told = status_json(status, None)
    assert told == {
        "Enabled": False,
        "Head": None,
        "PublicKey": "nlpub:" + "0" * 64,
        "NodeKey": None,
        "NodeKeySigned": False,
    }
