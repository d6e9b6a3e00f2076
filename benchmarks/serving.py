"""Servers under the same load in one run: relukan-serve and real Triton, requests of one row as JSON.

    python -m benchmarks.serving [--quick] [--json FILE]
    python -m benchmarks.serving --minutes 10     is there an error, does memory grow?
    python -m benchmarks.serving --reload         a new version every two seconds, every answer checked

All servers run all the time and take turns, in an order drawn anew each round. `wrk` asks, on the same
machine. Triton is the real server, from `make .venv-triton/.ready`; its Python backend runs this project's
runtime, or the bare graph in ONNX Runtime in the place of the backend that its wheel lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import random
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from relukan_deploy.api import export
from relukan_deploy.exporters.to_triton import TritonOptions, to_triton
from relukan_deploy.spec import KanSpec

from ._clients import Clients
from ._networks import trained_like
from ._report import header, new_console, print_header, write_json
from ._servers import MISSING_TRITON, Server, find_triton, relukan_serve, tritonserver
from ._wrk import Load, require_wrk, run_wrk

WIDTHS = (4, 64, 64, 1)
RELOADED = (4, 16, 2)
CLIENTS = (1, 8, 32)
PACKAGES = ("uvicorn", "starlette")
ONE, TWO = "relukan-serve", "relukan-serve, 2 workers"
TRITON, TRITON_GRAPH = "Triton, python", "Triton, bare graph"
GOALS = {ONE: 8_000, TWO: 12_000}  # requests a second, at least, of 32 clients
SLOWEST = 1 / 1.3  # of Triton's rate that ours may have
RELOAD_SECONDS, RELOAD_EVERY = 60, 2.0
GROWTH = 0.05  # of its memory, by which a server may grow after the first fifth of a soak


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, help="instead: load on relukan-serve for so long")
    parser.add_argument("--reload", action="store_true", help="instead: new versions under load")
    parser.add_argument("--quick", action="store_true", help="a short run, with wider spreads")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    options = parser.parse_args(arguments)
    console = new_console()
    values = header("serving", PACKAGES)
    print_header(console, values)
    with tempfile.TemporaryDirectory() as folder:
        if options.reload:
            results = reloading(console, Path(folder), seconds=10 if options.quick else RELOAD_SECONDS)
        elif options.minutes:
            results = soaking(console, Path(folder), seconds=round(options.minutes * 60))
        else:
            results = rates(console, Path(folder), quick=options.quick)
    if options.json:
        write_json(options.json, {**values, **results})
    if results.get("failed"):
        raise SystemExit(f"failed: {results['failed']}")


# --- how many requests a second


def rates(console: Console, folder: Path, *, quick: bool) -> dict[str, Any]:
    require_wrk()
    rounds, seconds = (1, 1) if quick else (5, 3)
    loads: dict[tuple[str, int], list[Load]] = {}
    with all_servers(console, folder, trained_like(WIDTHS).spec()) as servers:
        for server in servers.values():
            run_wrk(url(server), request(), clients=8, seconds=1)  # warm-up
        for turn in range(rounds):
            for clients in CLIENTS:
                names = list(servers)
                random.Random(f"{turn} {clients}").shuffle(names)
                for name in names:
                    load = run_wrk(url(servers[name]), request(), clients=clients, seconds=seconds)
                    loads.setdefault((name, clients), []).append(load)
    results = [row(name, clients, loads) for name, clients in sorted(loads, key=lambda key: (key[1], key[0]))]
    print_rates(console, results)
    errors = sum(result["errors"] for result in results)
    return {"network": list(WIDTHS), "results": results, "failed": f"{errors} errors" if errors else None}


@contextlib.contextmanager
def all_servers(console: Console, folder: Path, spec: KanSpec) -> Iterator[dict[str, Server]]:
    """Every server with the same network, each after one right answer."""
    with contextlib.ExitStack() as stack:
        bundle = export(spec, folder / "kan")
        servers = {
            ONE: stack.enter_context(relukan_serve(str(bundle.path))),
            TWO: stack.enter_context(relukan_serve(str(bundle.path), "--workers", "2")),
        }
        if find_triton() is None:
            console.print(f"[yellow]{MISSING_TRITON}[/]")
        else:
            major = export(spec, folder / "major", layout="batch-major")
            to_triton(bundle, TritonOptions(folder / "own", name="kan", backend="python"))
            to_triton(major, TritonOptions(folder / "graph", name="kan"))
            servers[TRITON] = stack.enter_context(tritonserver(folder / "own"))
            servers[TRITON_GRAPH] = stack.enter_context(tritonserver(folder / "graph"))
        for server in servers.values():
            check(server, spec)
        yield servers


def url(server: Server) -> str:
    return f"http://{server.http}/v2/models/kan/infer"


def request() -> str:
    """One row in the Open Inference Protocol."""
    x = np.random.default_rng(0).uniform(0, 1, WIDTHS[0]).round(4).tolist()
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, len(x)], "data": x}]})


def check(server: Server, spec: KanSpec) -> None:
    """Raises SystemExit if the answer to the one request is wrong: then nothing is timed."""
    with urllib.request.urlopen(urllib.request.Request(url(server), request().encode()), timeout=30) as answer:
        (y,) = json.loads(answer.read())["outputs"]
    expected = spec.evaluate([json.loads(request())["inputs"][0]["data"]])
    if np.abs(np.reshape(y["data"], y["shape"]) - expected).max() > 1e-5:
        raise SystemExit(f"{server.http} answers {y['data']}, expected {expected.tolist()}: nothing is timed")


def row(name: str, clients: int, loads: dict[tuple[str, int], list[Load]]) -> dict[str, Any]:
    """One server under one load: medians over the rounds, and its rate as a part of Triton's, round by round."""
    own = loads[name, clients]
    triton = loads.get((TRITON, clients), [])
    parts = [mine.rate / other.rate for mine, other in zip(own, triton, strict=False)]
    return {
        "server": name,
        "clients": clients,
        "rate": statistics.median(load.rate for load in own),
        "p50": statistics.median(load.p50 for load in own),
        "p99": statistics.median(load.p99 for load in own),
        "errors": sum(load.errors for load in own),
        "of Triton": {"median": statistics.median(parts), "low": min(parts), "high": max(parts)} if parts else None,
    }


def print_rates(console: Console, results: Sequence[dict[str, Any]]) -> None:
    table = Table("clients", "server", title=f"{list(WIDTHS)}, one row a request, JSON over HTTP")
    for column in ("requests/s", "p50 ms", "p99 ms", "errors", "of Triton's rate (range)"):
        table.add_column(column, justify="right")
    for result in results:
        part = result["of Triton"]
        goal = GOALS.get(result["server"]) if result["clients"] == CLIENTS[-1] else None
        rate = f"{result['rate']:,.0f}"
        if goal:
            rate = f"[{colour(result['rate'] >= goal)}]{rate}[/], goal {goal:,}"
        ratio = f"{part['median']:.2f} ({part['low']:.2f}–{part['high']:.2f})" if part else "–"
        if part and goal:
            ratio = f"[{colour(part['median'] >= SLOWEST)}]{ratio}[/], goal {SLOWEST:.2f}"
        cells = (f"{result['p50'] * 1e3:.2f}", f"{result['p99'] * 1e3:.2f}", str(result["errors"]), ratio)
        table.add_row(str(result["clients"]), result["server"], rate, *cells)
    console.print(table)


def colour(reached: bool) -> str:
    return "green" if reached else "red"


# --- for long


def soaking(console: Console, folder: Path, *, seconds: int) -> dict[str, Any]:
    """Load of 32 clients on two workers: errors, and memory by the second."""
    require_wrk()
    bundle = export(trained_like(WIDTHS).spec(), folder / "kan")
    with relukan_serve(str(bundle.path), "--workers", "2") as server:
        memory: list[int] = []
        load = run_wrk(
            url(server), request(), clients=32, seconds=seconds, meanwhile=lambda: memory.append(server.resident())
        )
    fifth = max(1, len(memory) // 5)
    before, after = statistics.median(memory[fifth : 2 * fifth]), statistics.median(memory[-fifth:])
    grown = after / before - 1
    console.print(
        f"{seconds} s, 32 clients, 2 workers: {load.requests:,} requests, {load.rate:,.0f}/s, "
        f"p50 {load.p50 * 1e3:.2f} ms, p99 {load.p99 * 1e3:.2f} ms, "
        f"[{colour(not load.errors)}]{load.errors} errors[/], memory {before / 1e6:.0f} MB in the second fifth, "
        f"[{colour(grown <= GROWTH)}]{after / 1e6:.0f} MB[/] in the last"
    )
    failed = [f"{load.errors} errors"] * bool(load.errors) + [f"memory grew by {grown:.0%}"] * (grown > GROWTH)
    sampled = memory[:: max(1, len(memory) // 60)]
    return {**dataclasses.asdict(load), "rate": load.rate, "memory": sampled, "grown": grown, "failed": failed}


def reloading(console: Console, folder: Path, *, seconds: int) -> dict[str, Any]:
    """A new version every two seconds under load of clients that check each answer."""
    spec = trained_like(RELOADED).spec()
    specs = [scaled(spec, factor) for factor in (1.0, 1.7, 0.6)]
    results, failed = [], []
    for workers in (1, 2):
        bundle = export(specs[0], folder / f"{workers}" / "kan").path
        with relukan_serve(str(bundle), "--workers", str(workers)) as server, Clients(server, "kan", specs) as clients:
            begin, versions = time.monotonic(), 1
            while versions * RELOAD_EVERY <= seconds and not clients.faults:
                time.sleep(max(0.0, begin + versions * RELOAD_EVERY - time.monotonic()))
                export(specs[versions % len(specs)], bundle)
                versions += 1
            clients.wait_for(versions, seconds=30)
            taken = time.monotonic() - begin
        seen = {"versions": versions, "seconds": taken, "answered": clients.answered, "faults": clients.faults}
        results.append({"workers": workers, **seen})
        failed += clients.faults
        console.print(
            f"{workers} worker{'s' * (workers > 1)}: {versions} versions in {taken:.0f} s, {clients.answered:,} right "
            f"answers, [{colour(not clients.faults)}]{len(clients.faults)} lost or wrong[/]"
        )
    return {"network": list(RELOADED), "reloading": results, "failed": failed}


def scaled(spec: KanSpec, factor: float) -> KanSpec:
    """The network with its answers multiplied."""
    last = spec.layers[-1]
    layer = dataclasses.replace(last, coefficients=last.coefficients * factor, bias=last.bias * factor)
    return dataclasses.replace(spec, layers=(*spec.layers[:-1], layer))


if __name__ == "__main__":
    main()
