"""What pages of the docs say of programs that are not ours: the policy of a guide in Headscale, ssh by ProxyCommand."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from pathlib import Path

import pytest

import tailscale
from tailscale.testing import Tailnet
from tests.interop.ours import joined, tailnet
from tests.interop.rig import Rig
from tests.interop.test_proxy_real import hashed_by_ssh, sshd
from tests.tailscale.tailnet_scripts import echo_service

DOCS = Path(__file__).resolve().parents[2] / "docs"
CAPABILITY = "example.com/cap/report"
CALLERS = [
    # user      tags         what it may
    ("alice",   (),          ["delete", "read"]),
    ("bob",     (),          ["read"]),
    ("alice",   ("tag:ci",), []),
]  # fmt: skip


async def test_policy_of_the_guide_means_in_headscale_what_the_guide_says(r: Rig) -> None:
    (policy,) = re.findall(r'^POLICY = """\n(.*?)"""', (DOCS / "policy.md").read_text(), re.MULTILINE | re.DOTALL)
    policy = policy.replace("alice@example.com", "alice@")  # as the page says of people without an e-mail address
    async with tailnet(r) as hs:
        await hs.auth_key("alice")
        await hs.set_policy(policy)
        async with (
            joined(hs, "report", auth_key=await hs.auth_key(tags=["tag:report"])) as report,
            echo_service(report, 8080),
        ):
            for user, tags, may in CALLERS:
                async with joined(hs, "caller", auth_key=await hs.auth_key(user, tags=tags)) as caller:
                    async with await caller.tcp_connect("report", 8080) as stream:
                        await stream.send_all(b"x")
                        assert await stream.receive_some() == b"x"
                    seen = await report.whois(caller.ipv4 or "")
                    rules = seen.capabilities.get(CAPABILITY, [])
                    assert (sorted(word for rule in rules for word in rule["may"]), seen.node.tags) == (may, tags)
                    with pytest.raises(tailscale.ConnectionRefused) as refused:
                        await caller.tcp_connect("report", 22)
                    assert refused.value.by_policy is (may != ["delete", "read"])


@pytest.mark.peerless
async def test_ssh_by_the_proxy_command_of_the_guide(tmp_path: Path) -> None:
    (command,) = re.findall(r"ssh -o ProxyCommand='pytailscale (.*?)'", (DOCS / "ssh.md").read_text())
    ours = f"{shlex.quote(sys.executable)} -m pytailscale {command}"
    async with sshd(tmp_path) as port, Tailnet(real=True) as net, net.device("db") as db:
        key = net.auth_key(ephemeral=True)
        environment = {"TS_CONTROL_URL": net.control.url, "TS_AUTHKEY": key, "HOME": str(tmp_path)}
        async with db.expose(22, local_port=port):
            made = await hashed_by_ssh(tmp_path, "db", 22, ours, **environment)
    assert made == hashlib.sha256(bytes(4 << 20)).hexdigest()
