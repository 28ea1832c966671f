"""What this machine's kernel is given so that every program on it reaches the tailnet: addresses, routes, rules.

Linux. Owns nothing of the packets: those are `tailscale/runtime/tun.py`.
"""
