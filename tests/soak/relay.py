"""Passes connections on from one address to another: what listens on loopback alone is reached over a network."""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()


async def _serve(listen: tuple[str, int], to: tuple[str, int]) -> None:
    async def passed_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_connection(*to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))

    server = await asyncio.start_server(passed_on, *listen)
    await server.serve_forever()


async def _main(pairs: list[str]) -> None:
    """Each pair: HOST:PORT=HOST:PORT."""
    ends = [[_end(each) for each in pair.split("=")] for pair in pairs]
    await asyncio.gather(*(_serve(listen, to) for listen, to in ends))


def _end(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
