"""`python -m tailscale`: the command line."""

from __future__ import annotations

import sys

from tailscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
