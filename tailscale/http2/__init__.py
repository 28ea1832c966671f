"""HTTP/2, either end of it: `machine.py` knows bytes, `link.py` moves them, `exchange.py` is one request for an app."""
