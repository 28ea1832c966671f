"""Userspace TCP, UDP and ICMP: IP packets to and from byte streams and datagrams. Pure; see stack.Stack."""
