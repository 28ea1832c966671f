"""`python -m pytailscale`, and what the command `pytailscale` starts: it can say when the package was overwritten."""

from __future__ import annotations

import sys

from tailscale.cli import main

if __name__ == "__main__":
    sys.exit(main())
