"""Two other distributions install a package called `tailscale`. Where one of them shares our folder, say so at once.

Whichever was installed last has overwritten files of the other, so nothing good can follow. The folder is listed here
because importlib.metadata costs 40 ms to import.
"""

from __future__ import annotations

import os

RIVALS = ("tailscale", "tailscale-py")  # a REST client and a binding of the Rust library


def check_import_name(folder: str = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) -> None:
    """Raise ImportError naming the other distribution if it shares our files."""
    for entry in os.listdir(folder):
        if not entry.endswith((".dist-info", ".egg-info")):
            continue
        name, _, version = entry.rpartition(".")[0].partition("-")
        rival = name.lower().replace("_", "-")
        if rival in RIVALS:
            raise ImportError(
                f"the distribution {rival!r} {version} is installed beside 'pytailscale' and both own the import name "
                f"'tailscale': keep one of them (pip uninstall {rival} pytailscale, then pip install the one you want)"
            )
