"""A program around one server, for tests of its signals: ``service_program.py WHAT GRACE``."""

from __future__ import annotations

import asyncio
import sys

from stackmap.codec import Lines
from stackmap.service import run, serve


async def echo(req: bytes) -> bytes:
    return req


async def slow(req: bytes) -> bytes:
    print("begun", flush=True)
    # Until the client goes on, which it does when the drain has begun.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return req


async def stuck(_req: bytes) -> bytes:
    print("begun", flush=True)
    await asyncio.get_running_loop().create_future()
    return b""


async def spin(_req: bytes) -> bytes:
    print("begun", flush=True)
    while True:
        pass


if __name__ == "__main__":
    service = {"echo": echo, "slow": slow, "stuck": stuck, "spin": spin}[sys.argv[1]]
    server = serve(sys.argv[2], service, Lines, grace=float(sys.argv[3]))
    sys.exit(run(server))
