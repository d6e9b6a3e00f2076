"""`Batcher` in one process: single-row calls a second of asyncio clients and of threads, beside direct calls.

    python -m benchmarks.batcher [--quick] [--json FILE]

A client asks for one row, waits for its answer, and asks again. Every contender has a Batcher of its own
around the same runner, with the limits that a Batcher has by default.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from relukan_deploy import export, load
from relukan_deploy.bench.timing import Timing, measure, ratio, timed
from relukan_deploy.runtime import Batcher, Runner

from ._networks import trained_like
from ._report import header, micro, new_console, print_header, write_json

NETWORKS = ((2, 5, 1), (4, 64, 64, 1))
CLIENTS = (1, 8, 32)
THREADS = 8
CALLS = 100  # of each client, in one turn
DIRECT = "runner(x)"
GOALS = {"8 asyncio clients": 50_000}  # calls a second, at least, of the small network


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batcher", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run, with wider spreads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    options = parser.parse_args(arguments)
    console = new_console()
    values = header("batcher")
    print_header(console, values)
    results: list[dict[str, Any]] = []
    for widths in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            runner = load(export(trained_like(widths), Path(folder) / "bundle").path, backend="onnxruntime-cpu")
        results += time_network(widths, runner, quick=options.quick)
    print_results(console, results)
    if options.json:
        write_json(options.json, {**values, "calls of a client": CALLS, "results": results})


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to ask. `turn` makes `calls` calls; its Batcher says how many rows it joined."""

    turn: Callable[[], object]
    calls: int
    batcher: Batcher | None = None


def time_network(widths: Sequence[int], runner: Runner, *, quick: bool) -> list[dict[str, Any]]:
    """One row of results for each contender; all take turns."""
    x = np.random.default_rng(0).uniform(0, 1, (1, runner.in_features)).astype(np.float32)
    with contextlib.ExitStack() as stack:
        contenders = {DIRECT: Contender(lambda: [runner(x) for _ in range(CALLS)], CALLS)}
        for clients in CLIENTS:
            plural = "client" if clients == 1 else "clients"
            contenders[f"{clients} asyncio {plural}"] = asyncio_clients(clients, runner, x, stack)
        contenders[f"{THREADS} threads"] = thread_clients(THREADS, runner, x, stack)
        timings = measure({name: timed(each.turn) for name, each in contenders.items()}, rounds=9 if quick else 41)
        return [row(widths, name, contenders, timings) for name in contenders]


def asyncio_clients(clients: int, runner: Runner, x: NDArray[np.float32], stack: contextlib.ExitStack) -> Contender:
    """A task for each client, in one event loop."""
    batcher = stack.enter_context(Batcher(runner))
    loop = stack.enter_context(contextlib.closing(asyncio.new_event_loop()))

    async def client() -> None:
        for _ in range(CALLS):
            await batcher(x)

    async def turn() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    return Contender(lambda: loop.run_until_complete(turn()), clients * CALLS, batcher)


def thread_clients(clients: int, runner: Runner, x: NDArray[np.float32], stack: contextlib.ExitStack) -> Contender:
    """A thread for each client."""
    batcher = stack.enter_context(Batcher(runner))
    pool = stack.enter_context(ThreadPoolExecutor(clients))

    def client(_: int) -> None:
        for _ in range(CALLS):
            batcher.submit(x).result()

    return Contender(lambda: list(pool.map(client, range(clients))), clients * CALLS, batcher)


def row(
    widths: Sequence[int], name: str, contenders: dict[str, Contender], timings: dict[str, Timing]
) -> dict[str, Any]:
    contender, timing = contenders[name], timings[name]
    stats = contender.batcher.stats() if contender.batcher else None
    each = ratio(timings[DIRECT], timing)  # of one turn to one turn
    times = contender.calls / contenders[DIRECT].calls
    return {
        "network": list(widths),
        "contender": name,
        "calls per second": contender.calls / timing.p50,
        "spread": timing.spread,
        "over direct calls": {key: value * times for key, value in dataclasses.asdict(each).items()},
        "rows per batch": stats.rows / stats.batches if stats else 1.0,
        "seconds per call": timing.p50 / contender.calls,
    }


def print_results(console: Console, results: Sequence[dict[str, Any]]) -> None:
    table = Table(title="Single-row calls a second; in brackets, the middle 80 % of the rounds")
    for column in ("network", "", "calls/s (spread)", "µs a call", "times direct calls", "rows a batch", "goal"):
        table.add_column(column, justify="right")
    for result in results:
        goal = GOALS.get(result["contender"]) if result["network"] == list(NETWORKS[0]) else None
        rate = f"{result['calls per second']:,.0f}"
        if goal is not None:
            rate = f"[{'green' if result['calls per second'] >= goal else 'red'}]{rate}[/]"
        times = result["over direct calls"]
        table.add_row(
            str(result["network"]),
            result["contender"],
            f"{rate} ({result['spread']:.0%})",
            micro(result["seconds per call"]),
            f"{times['median']:.2f} ({times['low']:.2f}–{times['high']:.2f})",
            f"{result['rows per batch']:.1f}",
            "" if goal is None else f"{goal:,}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
