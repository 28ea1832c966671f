"""`pytailscale cert NAME`: the certificate of this device, into files or onto standard output. As upstream's verb."""

from __future__ import annotations

import argparse
from pathlib import Path

from tailscale._private_files import Draft
from tailscale.cli.arguments import STANDARD_OUTPUT
from tailscale.cli.exit_codes import OK
from tailscale.cli.pipes import StandardOutput, file_to_write
from tailscale.cli.screen import Screen
from tailscale.cli.session import joined

PUBLIC, PRIVATE = 0o644, 0o600


async def cert(options: argparse.Namespace, screen: Screen) -> int:
    name, chain_file, key_file = options.name, options.cert_file, options.key_file
    async with joined(options, screen) as device:
        found = await device.certificate(name, min_validity=options.min_validity)
        for where, data, mode, what in (
            (chain_file, found.chain_pem, PUBLIC, "certificate"),
            (key_file, found.key_pem, PRIVATE, "private key"),
        ):
            if where == STANDARD_OUTPUT:
                await StandardOutput().send(data)
            elif where is not None:
                await _write(where, data, mode)
                screen.note(f"{what} for {name} until {found.expires:%Y-%m-%d %H:%M} UTC: {where}")
    return OK


async def _write(where: Path, data: bytes, mode: int) -> None:
    async with file_to_write(where, mode) as there:
        if not isinstance(there, Path):
            await there.send(data)
            return
        Draft.put(there, data, mode)
