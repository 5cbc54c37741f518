"""Network block devices: a sans-I/O protocol core, its asyncio server, and what it serves."""
