"""Devices of one app: hello, envelopes, acknowledged messages, block lists, shared slices. No socket and no clock."""
