"""asyncio: several conversations with a peer at once, over StreamReader and StreamWriter.

TS_AUTHKEY=... python aio_client.py db 5432
"""

from __future__ import annotations

import asyncio
import sys

from tailscale import aio


async def talk(device: aio.Device, host: str, port: int, number: int) -> str:
    reader, writer = await device.open_connection(host, port)
    writer.write(b"hello %d" % number)
    answer = await reader.read(100)
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def main(host: str, port: int) -> None:
    async with aio.Device("talker") as device:
        for answer in await asyncio.gather(*(talk(device, host, port, number) for number in range(3))):
            print(answer)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
