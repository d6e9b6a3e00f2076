"""relukan-verify: parity of every artifact of a bundle, on this machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from ..errors import MissingDeviceError, ParityError
from ..gpu import find_gpu
from ._command import console, make_parser, result_console, run
from ._reading import add_reading_options, reading_options
from ._report import describe_network, print_approximations, print_artifacts


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("relukan-verify", "Compares every artifact of a bundle with the float64 reference.")
    parser.add_argument("bundle", type=Path, help="folder that relukan-export wrote")
    parser.add_argument("--tolerance", type=float, help="instead of the one each artifact was exported with")
    parser.add_argument("--data", type=Path, help="table with the network's columns, to compare on as well")
    parser.add_argument("--checkpoint", type=Path, help="file the bundle was exported from; needed with --data")
    add_reading_options(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    return run(parser, _verify, argv)


def _verify(arguments: argparse.Namespace) -> None:
    from ..api import verify
    from ..bundle import open_bundle

    failure: ParityError | None = None
    bundle = open_bundle(arguments.bundle)
    with console.status("starting") as status:
        try:
            checks = verify(
                bundle,
                tolerance=arguments.tolerance,
                data=arguments.data,
                checkpoint=arguments.checkpoint,
                **reading_options(arguments),
                say=lambda doing: status.update(Text(doing)),
            )
        except ParityError as error:  # shown like the others, then raised
            checks, failure = list(error.checks), error
    manifest = bundle.manifest
    screen = result_console(json=arguments.json)
    # A Text, since brackets in a path are no markup.
    title = Text.assemble((str(arguments.bundle), "bold"), f": {describe_network(manifest)}\n")
    screen.print(title, soft_wrap=True)
    figures = [check.report.as_dict() if check.report else None for check in checks]
    rows = [(check.artifact, check.backend, found, check.reason) for check, found in zip(checks, figures, strict=True)]
    print_artifacts(screen, manifest, rows)
    print_approximations(screen, manifest)
    if arguments.json:
        entries = [{**dataclasses.asdict(check), "artifact": check.artifact.file} for check in checks]
        for entry, check in zip(entries, checks, strict=True):
            entry["passed"] = check.report is not None and check.report.passed
        print(json.dumps(entries, indent=2))
    if failure:
        raise failure
    if not any(figures):
        raise MissingDeviceError(f"nothing in {arguments.bundle} could be run here, so nothing was verified")
    if find_gpu() and not all(check.report for check in checks if check.artifact.kind != "onnx"):
        raise MissingDeviceError(f"the engine in {arguments.bundle} cannot be run on the GPU here: build it here")
