"""Rolling up under asyncio: what `tsengine.rollup` does, in a loop that is never held up."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

import pytest

import tsengine
from tests.aio_setting import Gate, Gated, run
from tests.test_rollup import SERIES, held
from tsengine import RollupReport, aio
from tsengine.backends.memory import MemoryEngine

POINTS = [(labels, moment, 1.0) for labels in SERIES for moment in range(9_000, 10_000, 10)]


@pytest.mark.parametrize("is_source_aio", [False, True])
@pytest.mark.parametrize("is_target_aio", [False, True])
def test_it_does_what_the_plain_one_does(is_source_aio: bool, is_target_aio: bool) -> None:
    """Engines of either kind; `progress` is called in the loop of the caller."""
    told: list[tuple[RollupReport, asyncio.AbstractEventLoop]] = []

    async def main() -> None:
        here, there = MemoryEngine(), MemoryEngine()
        async with aio.Engine(here) as source, aio.Engine(there) as target:
            await source.write(POINTS)
            report = await aio.rollup(
                source if is_source_aio else here,
                target if is_target_aio else there,
                "100ns",
                ["count", "mean"],
                "load",
                9_000,
                9_500,
                progress=lambda one: told.append((one, asyncio.get_running_loop())),
            )
            with MemoryEngine() as plain:
                again = tsengine.rollup(
                    here, plain, "100ns", ["count", "mean"], "load", 9_000, 9_500
                )
                assert held(plain) == held(there)
            assert (report.written, report.producer) == (again.written, again.producer)
            assert told[-1][0].written == report.written == 30
            assert told[-1][1] is asyncio.get_running_loop()

    run(main)


def test_a_cancelled_rollup_ends_before_that_is_raised() -> None:
    """Its commit ends first; run again, it goes on."""

    async def main() -> None:
        with Gated() as target, MemoryEngine() as source:
            source.write(POINTS)
            target.gates["commit"] = gate = Gate()
            rolling = asyncio.create_task(aio.rollup(source, target, "100ns", ["count"]))
            await gate.reached.wait()
            rolling.cancel()
            await asyncio.sleep(0)
            assert not rolling.done()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await rolling
            assert not [one for one in threading.enumerate() if one.name == "tsengine-aio-copy"]
            target.gates.clear()
            report = await aio.rollup(source, target, "100ns", ["count"])
            assert report.results == 30
            assert target.count() == 30

    run(main)


def test_it_takes_every_option() -> None:
    """`RollupOptions` are the keywords of `tsengine.rollup`."""
    parameters: Any = inspect.signature(tsengine.rollup).parameters.values()
    names = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert names == set(aio.RollupOptions.__annotations__)
