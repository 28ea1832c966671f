"""What a path to a peer gives: asked by `asking.py`, answered by every device's `answering.py`."""
