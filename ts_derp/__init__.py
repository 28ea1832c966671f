"""The relay protocol: client and server machines over the same frames. Knows nothing of tunnels or control."""
