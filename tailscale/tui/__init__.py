"""`pytailscale top`: a terminal interface over everything, as a client of the daemon's socket (extra `[tui]`).

Runs in asyncio and knows no Device: what it shows came as JSON lines. docs/visible.md shows it.
"""
