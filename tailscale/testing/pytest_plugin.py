"""The `tailnet` fixture."""
