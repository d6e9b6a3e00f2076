"""relukan-bench: latency and throughput of a bundle, beside what else could be deployed."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.live import Live
from rich.text import Text

from ..errors import InputError, RelukanError
from ..runtime import BACKENDS
from ._bench_reports import check_reports, print_comparison, print_out, print_reports
from ._command import console, count, make_parser, result_console, run

if TYPE_CHECKING:
    from ..bench.bench import Pythons
    from ..bench.request import Request
    from ..bench.results import Results

__all__ = ["main"]

_NAME = "relukan-bench"
_USAGE = f"""{_NAME} BUNDLE [option ...]
       {_NAME} merge FILE [FILE ...] [--json | --markdown] [--html FILE] [--plot FILE]
       {_NAME} compare OLD NEW [--threshold PART] [--json]"""
_MORE = f"""\
{_NAME} merge joins files that --json wrote, and prints them as one; of a single
file it makes the reports anew. {_NAME} compare says what differs by more than
noise, and leaves with exit code 1 where something is slower by more than
--threshold. A bundle that is called merge or compare is ./merge or ./compare.
How each number is taken: docs/benchmarks.md"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs relukan-bench and returns its exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    command = shlex.join([_NAME, *given])
    if given[:1] == ["merge"]:
        return run(_merge_parser(), _merge, given[1:])
    if given[:1] == ["compare"]:
        return run(_compare_parser(), _compare, given[1:])
    return run(_bench_parser(), lambda arguments: _bench(arguments, command), given)


def _bench_parser() -> argparse.ArgumentParser:
    parser = make_parser(_NAME, "Times a bundle in every backend that runs here, beside networks of its shape.")
    parser.usage, parser.epilog, parser.formatter_class = _USAGE, _MORE, argparse.RawDescriptionHelpFormatter
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that relukan-export wrote")
    add = parser.add_argument_group("what is timed").add_argument
    backends = f"of {', '.join(BACKENDS)} (default: all that it has files for)"
    add("--backend", metavar="NAME", nargs="+", choices=tuple(BACKENDS), help=backends)
    add("--batch", metavar="ROWS", nargs="+", type=count, help="(default: 1 to 65536 by powers of 4)")
    add(
        "--against",
        metavar="LIST",
        type=_peers,
        default=(),
        help="other networks of the same shape, with commas: pykan, efficient-kan, fast-kan, relu-kan. "
        "MLPs of the same widths and of as many parameters are always there",
    )
    add("--grid", type=count, help="of the network (default: what the order leaves of its basis)")
    add("--order", type=int, help="of the network (default: its splines', or 3 for bumps)")
    add("--equal-accuracy", metavar="DATA", type=Path, help="train all of them on a table too, and time them as well")
    add("--target", metavar="COLUMN", help="of that table (default: the bundle's)")
    add("--error", type=float, help="at which they are compared: 1 − R², or the share of wrong classes")
    add = parser.add_argument_group("how").add_argument
    add("--threads", type=count, default=1, help="of the CPU, for each (default: %(default)s)")
    add("--runs", type=count, help="how often everything is measured (default: 5)")
    add("--quick", action="store_true", help="a short look: two runs of fewer calls, with wider spreads")
    add("--isolate", action="store_true", help="each backend and each other network in a process of its own")
    add(
        "--python",
        metavar="[NAME=]PATH",
        action="append",
        default=[],
        help="interpreter that measures, or measures one backend or other network; can be repeated",
    )
    _add_reports(parser)
    return parser


def _merge_parser() -> argparse.ArgumentParser:
    parser = make_parser(f"{_NAME} merge", "Joins results, and prints them as one.")
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help=f"that {_NAME} --json wrote")
    _add_reports(parser)
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        f"{_NAME} compare", "Says which times differ by more than noise. Exit code 1 where one is a regression."
    )
    parser.add_argument("old", metavar="OLD", type=Path, help=f"that {_NAME} --json wrote")
    parser.add_argument("new", metavar="NEW", type=Path, help="likewise, later")
    parser.add_argument(
        "--threshold",
        metavar="PART",
        type=float,
        default=0.05,
        help="how much slower is a regression, if it is more than noise (default: %(default)s, which is 5 %%)",
    )
    parser.add_argument("--json", action="store_true", help="print what was found as JSON on standard output")
    return parser


def _add_reports(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reports, beside the table")
    printed = group.add_mutually_exclusive_group()
    printed.add_argument("--json", action="store_true", help="print the results as JSON on standard output")
    printed.add_argument("--markdown", action="store_true", help="print the table for a README instead")
    group.add_argument("--html", metavar="FILE", type=Path, help="write one page that needs no network")
    group.add_argument("--plot", metavar="FILE", type=Path, help="write latency against batch as a PNG")


def _bench(arguments: argparse.Namespace, command: str) -> None:
    from ..bench.bench import BATCHES, FULL, QUICK, backends_of, bench, engines_for
    from ..bench.request import Request
    from ..bundle import open_bundle

    check_reports(arguments)
    backends = tuple(dict.fromkeys(arguments.backend or backends_of(open_bundle(arguments.bundle))))
    request = Request(
        bundle=str(arguments.bundle),
        backends=backends,
        peers=tuple(dict.fromkeys((*arguments.against, "mlp"))),
        engines=engines_for(backends),
        threads=arguments.threads,
        grid=arguments.grid,
        order=arguments.order,
    )
    effort = QUICK if arguments.quick else FULL
    if arguments.runs:
        effort = dataclasses.replace(effort, runs=arguments.runs)
    with _saying() as say:
        trained = _equal_accuracy(arguments, request, command, say)
        results = bench(
            request,
            arguments.batch or BATCHES,
            effort,
            pythons=_pythons(arguments),
            starts=1 if arguments.quick else 5,
            command=command,
            say=say,
        )
    print_reports(arguments, _joined(results, trained) if trained else results)


def _merge(arguments: argparse.Namespace) -> None:
    from ..bench.stored import merge, read

    check_reports(arguments)
    print_reports(arguments, merge([read(path) for path in arguments.files]))


def _compare(arguments: argparse.Namespace) -> None:
    from ..bench.compare import compare
    from ..bench.stored import read

    found = compare(read(arguments.old), read(arguments.new), threshold=arguments.threshold)
    print_comparison(result_console(json=arguments.json), found)
    if arguments.json:
        print_out(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
    slower = sorted((each for each in found.differences if each.is_regression), key=lambda each: -each.ratio)
    if slower:
        times = f"{len(slower)} of {len(found.differences)} times {'is' if len(slower) == 1 else 'are'}"
        raise RelukanError(
            f"{times} slower by more than {arguments.threshold:.0%} and than noise, "
            f"the most {slower[0].name}: {slower[0].ratio:.2f} times as long as before"
        )


def _equal_accuracy(
    arguments: argparse.Namespace, request: Request, command: str, say: Callable[[str], None]
) -> Results | None:
    """The networks trained on a table, where that was asked for, and where they were timed."""
    if arguments.equal_accuracy is None:
        for name in ("target", "error"):
            if getattr(arguments, name) is not None:
                raise InputError(f"--{name} is a matter of --equal-accuracy DATA")
        return None
    from ..bench.accuracy import equal_accuracy
    from ..bench.environment import available_bytes, describe
    from ..bench.results import Results
    from ..bench.subjects.bundles import shape_of
    from ..bundle import open_bundle

    bundle = open_bundle(arguments.bundle)
    shape = shape_of(bundle, arguments.grid, arguments.order)
    accuracies, skipped = equal_accuracy(
        arguments.equal_accuracy,
        arguments.target,
        bundle,
        against=[name for name in request.peers if name != "mlp"],
        error=arguments.error,
        grid=shape.grid,
        order=shape.order,
        threads=request.threads,
        memory=available_bytes() // 2,
        say=say,
    )
    here = describe(command, request.threads)
    return Results(bundle.path.resolve().name, (here,), (), accuracies=tuple(accuracies), skipped=tuple(skipped))


def _joined(results: Results, trained: Results) -> Results:
    """Both, and one environment where both were measured in this process."""
    from ..bench.stored import merge

    (own,) = trained.environments
    same = next((each for each in results.environments if each.versions == own.versions), own)
    return merge([results, dataclasses.replace(trained, environments=(same,))])


@contextlib.contextmanager
def _saying() -> Iterator[Callable[[str], None]]:
    """What to call with what is being done. No spinner: its thread would be measured too.

    Ctrl-C counts even where it came while something swallowed it: a compiler of PyTorch, or Python as it
    frees something. It is raised again before the next thing is done.
    """
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    def say(doing: str) -> None:
        if interrupted:
            raise KeyboardInterrupt
        live.update(Text(doing, "dim"), refresh=True)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield say
            say("")
    finally:
        signal.signal(signal.SIGINT, before)


def _pythons(arguments: argparse.Namespace) -> Pythons:
    from ..bench.bench import Pythons
    from ..bench.peers import PEERS

    default, named = None, {}
    for given in arguments.python:
        name, equals, path = given.partition("=")
        if equals and name in (*BACKENDS, *PEERS):
            named[name] = path
        elif equals and os.sep not in name:
            raise InputError(f"--python {given}: {name!r} is none of {', '.join((*BACKENDS, *PEERS))}")
        else:
            default = given
    return Pythons(default, named, arguments.isolate)


def _peers(text: str) -> tuple[str, ...]:
    from ..bench.peers import PEERS

    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"no network is called {name!r}: choose from {', '.join(PEERS)}")
    return names
