"""The README's figures, written from the recorded results: none of them is ever typed.

python -m benchmarks.readme    rewrites what stands between the markers in README.md

<!-- figures of inference, by benchmarks/readme.py from benchmarks/results/cpu-x86-64 -->
…
<!-- end of inference -->
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relukan_deploy._files import replacing_file
from relukan_deploy.bench.report import words
from relukan_deploy.bench.report.groups import Group, Line, groups
from relukan_deploy.bench.report.markdown import escape
from relukan_deploy.bench.results import OURS, Data
from relukan_deploy.bench.stored import read

from ._ratios import graph_of, run_ratios, spread, times
from ._readme_imported import imported
from ._readme_text import paragraph, rows_of
from ._readme_training import fitting

Json = list[dict[str, Any]]
Way = tuple[str, Data]

ROOT = Path(__file__).parent.parent
README, RECORDED = ROOT / "README.md", ROOT / "benchmarks" / "results" / "cpu-x86-64"
BEGIN = "<!-- figures of {}, by benchmarks/readme.py from benchmarks/results/cpu-x86-64 -->"
END = "<!-- end of {} -->"
NETWORKS = {
    OURS: "this network in PyTorch",
    "pykan": "pykan",
    "efficient-kan": "efficient-kan",
    "fast-kan": "fast-kan",
    "relu-kan": "reference ReLU-KAN",
    "mlp, same widths": "MLP of the same widths",
    "mlp, same parameters": "MLP of as many parameters",
}
KANS = [network for network in NETWORKS if not network.startswith("mlp")]
# An engine, and where the rows lie. Exported peers, like our graph, are timed alone; our runner is not.
PYTORCH: tuple[Way, ...] = (("torch", "host"), ("torch.compile", "host"))
EXPORTED: Way = ("onnxruntime-cpu", "bound")
RUNNER: Way = ("onnxruntime-cpu", "host")
VERSIONS = {"PyTorch": "torch", "ONNX Runtime": "onnxruntime", "pykan": "pykan"}
SERVERS = {
    "relukan-serve": "`relukan-serve`",
    "relukan-serve, 2 workers": "`relukan-serve --workers 2`",
    "Triton, python": "Triton 2.51, our runtime in its Python backend",
}


def main() -> None:
    text = rewritten(README.read_text(encoding="utf-8"), RECORDED)
    with replacing_file(README) as written:
        written.write_text(text, encoding="utf-8")


def rewritten(text: str, folder: Path) -> str:
    """The README with the figures of the results in a folder.

    Raises:
        SystemExit: a marker is missing, or is there twice.
    """
    blocks = {"fitting": fitting, "inference": inference, "imported": imported, "service": service}
    for name, figures in blocks.items():
        begin, end = BEGIN.format(name), END.format(name)
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"README.md must have each of these lines once:\n{begin}\n{end}")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{figures(folder)}\n{end}{rest.partition(end)[2]}"
    return text


# --- one call


def inference(folder: Path) -> str:
    """Every network beside the graph, and pykan in a process of its own."""
    results, alone = read(folder / "inference_cpu.json"), read(folder / "pykan_alone.json")
    (environment,) = results.environments
    found = groups(results)
    runs = {len(timing.rounds) for group in found for timing in graph_of(group).timings}
    versions = [f"{title} {environment.versions[name]}" for title, name in VERSIONS.items()]
    said = paragraph(
        f"{escape(environment.processor)}, {words.threads(environment.threads)}, G=5, order 3, float32,",
        f"{', '.join(versions)}: medians of {max(runs)} runs of one process, in which all took turns.",
        "The first line is the time of the exported graph in ONNX Runtime. The others are how many times as long each",
        "took: in PyTorch · compiled by `torch.compile` · exported by PyTorch into the same ONNX Runtime.",
    )
    figures = table(found)
    note = f"\n\n{words.UNSTEADY_NOTE}." if words.UNSTEADY in figures else ""
    return f"{said}\n\n{figures}{note}\n\n{paragraph(faster_kans(found), in_own_process(groups(alone)))}"


def table(found: list[Group]) -> str:
    """A row for each network, a column for each shape and batch size."""
    places = [(group, batch) for group in found for batch in group.batches]
    lines = [
        ["", *(f"{list(group.widths)}, batch {batch}" for group, batch in places)],
        ["---", *["---:"] * len(places)],
    ]
    lines.append(["**this graph**", *(f"**{time_of(graph_of(group), batch)}**" for group, batch in places)])
    lines.append(["this graph, `runner(x)`", *(times_of(group, batch, OURS, [RUNNER]) for group, batch in places)])
    for network, name in NETWORKS.items():
        ways = PYTORCH if network == OURS else (*PYTORCH, EXPORTED)
        lines.append([name, *(times_of(group, batch, network, ways) for group, batch in places)])
    return rows_of(lines)


def time_of(line: Line, batch: int) -> str:
    timing = line.timing(batch)
    return words.duration(timing) if timing else "–"


def times_of(group: Group, batch: int, network: str, ways: Sequence[Way]) -> str:
    """How many times as long as the graph a network took, in each way."""
    lines = {(line.network, line.series.contender.engine, line.data): line for line in group.lines}
    known = [lines.get((network, *way)) for way in ways]
    found = [ratios_of(line, group).get(batch) if line else None for line in known]
    cells = [times(ratios).removesuffix(" ×") if ratios else "–" for ratios in found]
    return " · ".join(cells) + " ×" * any(found)


def faster_kans(found: list[Group]) -> str:
    """Which KAN is faster than the graph, and where."""
    said = []
    for group in found:
        for line in group.lines:
            if line.network in KANS and (line.series.contender.engine, line.data) in (*PYTORCH, EXPORTED):
                faster = [
                    f"{times(ratios)} at batch {batch}"
                    for batch, ratios in ratios_of(line, group).items()
                    if statistics.median(ratios) < 1
                ]
                if faster:
                    said.append(
                        f"{NETWORKS[line.network]}, {line.brief}, for {list(group.widths)} ({words.join(faster)})"
                    )
    return f"Of the KANs, {words.join(said) or 'none'} {'were' if said[1:] else 'was'} faster than the graph."


def in_own_process(found: list[Group]) -> str:
    """How pykan does where nothing else has been run before."""
    said = []
    for group in found:
        (pykan,) = (line for line in group.lines if line.network == "pykan")
        each = [
            f"{times(ratios)} ({spread(ratios)}) at batch {batch}" for batch, ratios in ratios_of(pykan, group).items()
        ]
        said.append(f"{words.join(each)} for {list(group.widths)}")
    return (
        "Alone with the graph, each in a process of its own that is new for each batch size, pykan takes "
        f"{'; '.join(said)}. In brackets is the range of the runs."
    )


def ratios_of(line: Line, group: Group) -> dict[int, list[float]]:
    """By batch, how many times as long as the graph it took in each run."""
    graph = graph_of(group)
    both = {batch: (line.timing(batch), graph.timing(batch)) for batch in group.batches}
    return {batch: run_ratios(own, other) for batch, (own, other) in both.items() if own and other}


# --- what is around a call


def service(folder: Path) -> str:
    """The runner, `Batcher`, the servers, and what is waited for before the first answer."""
    names = ("runner", "batcher", "serving", "soak", "reload", "startup")
    found = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    return "\n\n".join(
        [
            paragraph(
                calls(found["runner"]["results"]),
                joined(found["batcher"]["results"]),
                "Over HTTP, with one row of JSON a request, and client and server on the same two cores:",
            ),
            servers(found["serving"]),
            paragraph(soaked(found["soak"]), reloaded(found["reload"]["reloading"])),
            paragraph(started(found["startup"]["results"])),
        ]
    )


def calls(results: Json) -> str:
    def over_bare(batch: int) -> list[float]:
        return [each["runner over bare"]["median"] for each in results if each["batch"] == batch]

    (large,) = (
        each["runner over bare"]["median"]
        for each in results
        if (each["network"], each["batch"]) == ([4, 64, 64, 1], 8192)
    )
    return (
        f"At batch 1, `runner(x)` with its checks, guard and counters takes {min(over_bare(1)):.1f} to "
        f"{max(over_bare(1)):.1f} times as long as the bare `InferenceSession.run` of the same graph, and at 8192 rows "
        f"of [4, 64, 64, 1], which it cuts into parts that fit the cache, {large:.2f} times."
    )


def joined(results: Json) -> str:
    rates = {each["contender"]: each["calls per second"] for each in results if each["network"] == [2, 5, 1]}
    few, many = (f"{rates[f'{clients} asyncio clients'] / 1e3:.0f} thousand" for clients in (8, 32))
    return f"A `Batcher` around [2, 5, 1] answers {few} single rows a second to 8 asyncio clients, and {many} to 32."


def servers(found: dict[str, Any]) -> str:
    """A row for each server: requests a second by clients."""
    rates = {(each["server"], each["clients"]): each for each in found["results"]}
    clients = sorted({clients for _, clients in rates})
    titles = [f"{count} {'client' if count == 1 else 'clients'}" for count in clients]
    lines = [[f"requests a second, {found['network']}", *titles, f"p50, {titles[-1]}"], ["---"] * (len(clients) + 2)]
    for server, name in SERVERS.items():
        own = [rates[server, count] for count in clients if (server, count) in rates]
        if own:
            cells = [f"{round(each['rate'], -1):,.0f}" for each in own]
            lines.append([name, *cells, f"{own[-1]['p50'] * 1e3:.1f} ms"])
    return rows_of(lines)


def soaked(found: dict[str, Any]) -> str:
    fifth, last = len(found["memory"]) // 5, found["memory"][-1]
    return (
        f"{found['seconds'] / 60:.0f} minutes of load were {found['requests'] / 1e6:.1f} million requests with "
        f"{found['errors'] or 'no'} errors; the memory was {found['memory'][fifth] / 1e6:.0f} MB after a fifth of the "
        f"time, and {last / 1e6:.0f} MB at the end."
    )


def reloaded(found: Json) -> str:
    answered = sum(each["answered"] for each in found)
    faults = sum(len(each["faults"]) for each in found)
    every = statistics.mean(each["seconds"] / (each["versions"] - 1) for each in found)
    return (
        f"With a new version every {every:.0f} seconds, {faults or 'none'} of {answered:,} answers was lost or wrong "
        "(`make bench-serving`)."
    )


def started(results: Json) -> str:
    seconds = {each["name"]: each["median"] for each in results}
    imported = seconds["import relukan_deploy, within the process"]
    answered = seconds["load and first answer, within the process"]
    exported = seconds["relukan-export --trt, verification included"]
    return (
        f"`import relukan_deploy` takes {imported * 1e3:.0f} ms, loading a bundle and the first answer {answered:.2f} "
        f"s, and exporting a [64, 32, 10] network with `--trt`, verification included, {exported:.1f} s."
    )


if __name__ == "__main__":
    main()
