"""`python -m tailscale.cli`: the command line where no console script is installed."""

from __future__ import annotations

import sys

from tailscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
