"""An SSH server on the tailnet: whoever the tailnet's policy lets in, nobody else, and no keys to hand out.

```python
async def handler(session):
    await session.stdout.send_all(f"hello {session.peer.hostname}, you are {session.user}\\n".encode())
    session.exit(0)


await tailscale.ssh.serve_ssh(device, handler)
```

`pip install "pytailscale[ssh]"`. Loaded when it is first used.
"""

from tailscale._lazy import lazily, names_of

__getattr__ = lazily(
    __name__,
    names_of(
        {
            "tailscale.ssh.errors": ("SshUnavailable",),
            "tailscale.ssh.host_keys": ("HostKey",),
            "tailscale.ssh.serving": ("serve_ssh",),
            "tailscale.ssh.session": ("Session", "SyncSession", "Terminal"),
        }
    ),
)

__all__ = ["HostKey", "Session", "SshUnavailable", "SyncSession", "Terminal", "serve_ssh"]
