"""relukan-verify: parity of every artifact of a bundle, on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ..errors import MissingDeviceError
from ._command import console, make_parser, run
from ._report import describe_network, print_artifacts


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("relukan-verify", "Compares every artifact of a bundle with the float64 reference.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tolerance", type=float, help="instead of the one each artifact was exported with")
    parser.add_argument("--data", type=Path, help="table with the network's columns, to compare on as well")
    parser.add_argument("--checkpoint", type=Path, help="file the bundle was exported from; needed with --data")
    parser.add_argument("--grid", type=int, help="of a reference ReLU-KAN whose intervals were trained")
    parser.add_argument("--order", type=int, help="likewise")
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    return run(parser, _verify, argv)


def _verify(arguments: argparse.Namespace) -> None:
    from ..api import verify
    from ..bundle import open_bundle

    with console.status("starting") as status:
        checks = verify(
            arguments.bundle,
            tolerance=arguments.tolerance,
            data=arguments.data,
            checkpoint=arguments.checkpoint,
            grid=arguments.grid,
            order=arguments.order,
            say=lambda doing: status.update(Text(doing)),
        )
    manifest = open_bundle(arguments.bundle).manifest
    screen = console if arguments.json else Console(highlight=False)
    # A Text, since brackets in a path are no markup.
    title = Text.assemble((str(arguments.bundle), "bold"), f": {describe_network(manifest)}\n")
    screen.print(title, soft_wrap=True)
    figures = [check.report.as_dict() if check.report else None for check in checks]
    rows = [(check.artifact, check.backend, found, check.reason) for check, found in zip(checks, figures, strict=True)]
    print_artifacts(screen, manifest, rows)
    if arguments.json:
        entries = [{**dataclasses.asdict(check), "artifact": check.artifact.file} for check in checks]
        for entry in entries:
            entry["passed"] = entry["report"] is not None  # a failed comparison never gets here
        print(json.dumps(entries, indent=2))
    if not any(figures):
        raise MissingDeviceError(f"nothing in {arguments.bundle} could be run here, so nothing was verified")
