"""tsengine under asyncio: the engine and the buffer, awaited, over the same synchronous core.

    from tsengine import aio

    async with aio.open("lmdb:///var/lib/app/metrics") as engine, aio.WriteBuffer(engine) as buffer:
        receipt = await buffer.write((cpu, 1_700_000_000_000_000_000, 0.42))  # durable
        async for batch in engine.scan('cpu_usage{region="eu"}'):
            ...

What waits for a store does so in one thread of each object, never in the event loop; `copy`,
`verify` and `rollup` have threads of their own.
"""

from tsengine.aio.buffer import BufferOptions, WriteBuffer
from tsengine.aio.copying import CopyOptions, RollupOptions, copy, rollup, verify
from tsengine.aio.engine import Engine, open

__all__ = [
    "BufferOptions",
    "CopyOptions",
    "Engine",
    "RollupOptions",
    "WriteBuffer",
    "copy",
    "open",
    "rollup",
    "verify",
]
