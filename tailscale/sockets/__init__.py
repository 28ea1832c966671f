"""What users owner: streams, listeners, UDP sockets. Their classes are public by `tailscale`."""
