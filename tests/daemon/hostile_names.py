"""What a hostile control server or peer may call things: commands to terminals, markup, turned text, forged lines."""

from __future__ import annotations

from typing import Any

WICKED = (
    "evil\x1b[2J\x1b]0;gotcha\x07\x9b31m\u202eturned<script>document.title='owned'</script><img src=x onerror=alert(1)>"
    '\r\nforged: line\u2028 $(touch owned) `touch owned` "} 1 \\ [bold]' + "x" * 10_000
)


def wicked_words(netmap: dict[str, Any]) -> dict[str, Any]:
    """A map message that calls everything WICKED; `netmap` is as `watch-ipn-bus` has it."""
    peers = []
    for node in netmap["Peers"]:
        hostinfo = node.get("Hostinfo", {}) | {"Hostname": WICKED, "OS": WICKED, "OSVersion": WICKED}
        label = WICKED.replace(".", "")
        peers.append(node | {"Name": f"{label}.tailnet.test.", "Tags": None, "Hostinfo": hostinfo})
    users = [user | {"LoginName": WICKED, "DisplayName": WICKED} for user in netmap["UserProfiles"].values()]
    message = {"Title": WICKED, "Text": WICKED, "Severity": "high", "PrimaryAction": {"URL": WICKED, "Label": WICKED}}
    return {
        "PeersChanged": peers,
        "UserProfiles": users,
        "Health": [WICKED],
        "DisplayMessages": {WICKED: message},
        "Domain": WICKED,
    }


def is_harmless(text: str) -> bool:
    """Nothing that commands a terminal, turns text around, or begins a line of its own."""
    return all(line.isprintable() and not line.startswith("forged") for line in text.split("\n"))
