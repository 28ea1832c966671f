"""Certificates for the names of a device: from the tailnet's control server by ACME, or from files of yours.

```python
async with tailscale.Device("web") as device:
    certificate = await device.certificate()
    print(certificate.names, certificate.expires)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailscale._lazy import lazily, names_of

if TYPE_CHECKING:
    from tailscale.certificates.control import ControlCertificates as ControlCertificates
    from tailscale.certificates.files import FileCertificates as FileCertificates
    from tailscale.certificates.source import CertificateSource as CertificateSource
    from tailscale.certificates.source import Ground as Ground
    from tailscale.certificates.source import Renewal as Renewal
    from tailscale.certificates.value import Certificate as Certificate

_HOME_OF = names_of(
    {
        "tailscale.certificates.control": ("ControlCertificates",),
        "tailscale.certificates.files": ("FileCertificates",),
        "tailscale.certificates.source": ("CertificateSource", "Ground", "Renewal"),
        "tailscale.certificates.value": ("Certificate",),
    }
)

__all__ = [*_HOME_OF]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__ = lazily(__name__, _HOME_OF)


def __dir__() -> list[str]:
    return sorted(__all__)
