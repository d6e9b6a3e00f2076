"""relukan-export: a checkpoint becomes a verified bundle."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.text import Text

from ..errors import InputError
from ..spec import Layout, Precision
from ._command import console, make_parser, result_console, run
from ._reading import add_reading_options, reading_options
from ._report import (
    describe_network,
    print_approximations,
    print_artifacts,
    print_estimates,
    print_fifth_operator,
)

if TYPE_CHECKING:
    from ..exporters.to_tensorrt import EngineOptions
    from ..exporters.to_triton import TritonOptions

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("relukan-export", "Writes a bundle: a four-operator ONNX graph, and with --trt an engine.")
    parser.add_argument("model", type=Path, help="checkpoint: .pt, .safetensors, or what pykan's saveckpt wrote")
    parser.add_argument("-o", "--out", type=Path, metavar="BUNDLE", help="folder to write (default: the model's name)")
    parser.add_argument("--trt", action="store_true", help="also build a TensorRT engine")
    parser.add_argument("--triton", type=Path, metavar="REPO", help="also add the bundle to Triton's model repository")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="default: fp32")
    parser.add_argument(
        "--layout", choices=get_args(Layout), help="default: batch-last, the fast one; batch-major with --triton"
    )
    parser.add_argument(
        "--batch",
        nargs=3,
        type=int,
        metavar=("MIN", "OPT", "MAX"),
        default=(1, 64, 1024),
        help="batch sizes the engine allows, and the one to be fastest at (default: 1 64 1024)",
    )
    parser.add_argument("--tolerance", type=float, help="largest error relative to max(1, max|y|)")
    parser.add_argument("--data", type=Path, help="table with the network's columns; rows 1 to 4096 are compared too")
    parser.add_argument("--strict-ops", action="store_true", help="SiLU without Sigmoid, as a piecewise polynomial")
    parser.add_argument("--approximate", action="store_true", help="edges that compute sin, exp, … likewise")
    parser.add_argument("--bound", type=float, help="largest error of each such SiLU and edge (default: 1e-6)")
    add_reading_options(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    engine = parser.add_argument_group("with --trt")
    engine.add_argument(
        "--flavour", choices=("tensorrt", "tensorrt-rtx"), help="default: tensorrt if it and a GPU are there"
    )
    engine.add_argument(
        "--workspace", type=_bytes, metavar="SIZE", help="device memory for the engine, such as 256M or 1G"
    )
    engine.add_argument("--refittable", action="store_true", help="weights can be replaced without a rebuild")
    engine.add_argument("--version-compatible", action="store_true", help="later TensorRT versions can run it")
    engine.add_argument("--hardware-compatible", action="store_true", help="any GPU from Ampere on can run it")
    engine.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="where kernel timings are kept between builds"
    )
    triton = parser.add_argument_group("with --triton")
    triton.add_argument("--name", help="the model's name (default: the bundle's)")
    triton.add_argument(
        "--triton-backend",
        choices=("auto", "tensorrt_plan", "onnxruntime", "python"),
        help="default: auto, the engine if there is one, else the graph; python runs relukan-deploy itself",
    )
    triton.add_argument("--instances", type=int, metavar="COUNT", help="batches run at once (default: 1)")
    triton.add_argument(
        "--max-delay", type=float, metavar="SECONDS", help="longest wait of a request for company (default: 0)"
    )
    return run(parser, _export, argv)


def _export(arguments: argparse.Namespace) -> None:
    from ..api import default_place, export
    from ..exporters.to_triton import check_entry, to_triton

    engine, triton = _engine_options(arguments), _triton_options(arguments)
    layout: Layout = arguments.layout or ("batch-major" if triton and triton.backend != "python" else "batch-last")
    if triton:
        check_entry(triton, arguments.out or default_place(arguments.model), layout)
    with console.status("starting") as status:
        bundle = export(
            arguments.model,
            arguments.out,
            trt=arguments.trt,
            flavour=arguments.flavour,
            precision=arguments.precision,
            layout=layout,
            engine=engine,
            tolerance=arguments.tolerance,
            data=arguments.data,
            **_approximation_options(arguments),
            **reading_options(arguments),
            say=lambda doing: status.update(Text(doing)),  # TensorRT's names are no markup
        )
        entry = to_triton(bundle, triton, batch=engine.batch) if triton else None
    manifest = bundle.manifest
    screen = result_console(json=arguments.json)
    screen.print(Text.assemble((str(arguments.model), "bold"), " → ", (f"{bundle.path}/", "bold")), soft_wrap=True)
    if entry:
        screen.print(Text.assemble((str(bundle.path), "bold"), " → ", (f"{entry}/", "bold")), soft_wrap=True)
    screen.print(describe_network(manifest) + "\n")
    rows = [(a, a.parity["backend"] if a.parity else None, a.parity, a.reason) for a in manifest.artifacts]
    print_artifacts(screen, manifest, rows)
    print_estimates(screen, manifest)
    print_approximations(screen, manifest)
    asked = arguments.bound or 1e-6
    if any(each.bound < asked for each in manifest.approximations):
        screen.print(Text(f"that is closer than --bound {asked:g}, for the answers to be within the tolerance", "dim"))
    print_fifth_operator(screen, manifest)
    if any(not artifact.verified for artifact in manifest.artifacts):
        command = Text(f"relukan-verify {shlex.quote(str(bundle.path))}", "bold")
        screen.print(Text.assemble("\nOn the machine that will run it: ", command), soft_wrap=True)
    if arguments.json:
        places = {"bundle": str(bundle.path)} | ({"triton": str(entry)} if entry else {})
        print(json.dumps({**places, **dataclasses.asdict(manifest)}, indent=2))


def _engine_options(arguments: argparse.Namespace) -> EngineOptions:
    from ..exporters.to_tensorrt import EngineOptions

    only_engine = ("flavour", "workspace", "refittable", "version_compatible", "hardware_compatible", "timing_cache")
    given = [name for name in only_engine if getattr(arguments, name)]
    if given and not arguments.trt:
        raise InputError(f"--{given[0].replace('_', '-')} is a matter of the engine: add --trt")
    options = {name: getattr(arguments, name) for name in only_engine if name != "flavour"}
    return EngineOptions(batch=tuple(arguments.batch), **options)


def _approximation_options(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.bound is not None and not (arguments.strict_ops or arguments.approximate):
        raise InputError("--bound is a matter of what is approximated: add --strict-ops for SiLU, or --approximate")
    options = {"strict_ops": arguments.strict_ops, "approximate": arguments.approximate}
    return options if arguments.bound is None else {**options, "bound": arguments.bound}


def _triton_options(arguments: argparse.Namespace) -> TritonOptions | None:
    from ..exporters.to_triton import TritonOptions

    only_triton = ("name", "triton_backend", "instances", "max_delay")
    given = [name for name in only_triton if getattr(arguments, name) is not None]
    if arguments.triton:
        options = {name.removeprefix("triton_"): getattr(arguments, name) for name in given}
        if options.get("backend") == "tensorrt_plan" and (not arguments.trt or arguments.flavour == "tensorrt-rtx"):
            raise InputError(
                "tensorrt_plan serves an engine of TensorRT: add --trt --flavour tensorrt, on the target GPU"
            )
        return TritonOptions(arguments.triton, **options)
    if given:
        raise InputError(f"--{given[0].replace('_', '-')} is a matter of Triton: add --triton REPO")
    return None


def _bytes(text: str) -> int:
    """256M, 1G or a plain number of bytes."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    try:
        size = int(float(number) * unit)
        if not 0 < size < 1 << 63:
            raise ValueError(size)
        return size
    except (ValueError, OverflowError) as error:  # OverflowError for inf
        raise argparse.ArgumentTypeError(f"expected a size such as 256M or 1G, got {text!r}") from error
