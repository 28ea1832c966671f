"""Two other distributions install a package called `tailscale`. Where one of them shares our folder, say so at once.

Whichever was installed last has overwritten files of the other, so nothing good can follow.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

RIVALS = ("tailscale", "tailscale-py")  # a REST client and a binding of the Rust library


def check_import_name() -> None:
    """Raise ImportError naming the other distribution if it shares our files."""
    for rival in RIVALS:
        try:
            found = version(rival)
        except PackageNotFoundError:
            continue
        raise ImportError(
            f"the distribution {rival!r} {found} is installed beside 'pytailscale' and both own the import name "
            f"'tailscale': keep one of them (pip uninstall {rival} pytailscale, then pip install the one you want)"
        )
