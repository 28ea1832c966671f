"""WireGuard, sans I/O: plaintext runs to and from ciphertext runs, per peer. Start reading at `endpoint.py`."""
