"""Dialling: what stands between a name and a connection, and the sentence when it fails. Private."""
