"""What users hold: streams, listeners, UDP sockets. Their classes are public by `tailscale`."""
