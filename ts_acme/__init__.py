"""Certificates by ACME (RFC 8555): a client as conversations, a server to test against, and what a chain must be."""
