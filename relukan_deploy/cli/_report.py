"""The table that relukan-export and relukan-verify end with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..bundle import Artifact, Manifest

__all__ = [
    "Row",
    "describe_network",
    "print_approximations",
    "print_artifacts",
    "print_estimates",
    "print_fifth_operator",
]

_NAMES = {"onnx": "ONNX", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

_NOTABLE = 0.02  # an error of this part of the answers' range is mentioned even where it is allowed

# An artifact, the backend it was compared on, the figures (or None), and why there are none.
Row = tuple[Artifact, str | None, Any, str | None]


def describe_network(manifest: Manifest) -> str:
    """One line: the shape of the network and what it answers."""
    widths = " → ".join(map(str, manifest.widths))
    if manifest.task == "regression":
        return f"{widths}, regression"
    return f"{widths}, classification into {manifest.out_features} classes"


def print_artifacts(console: Console, manifest: Manifest, rows: Iterable[Row]) -> None:
    """Prints one line for each artifact and backend, and below it how they were made."""
    rows = list(rows)
    agreement = manifest.task == "classification"
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("artifact", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("precision", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    table.add_column("allowed", justify="right", no_wrap=True)
    if agreement:
        table.add_column("same class", justify="right", no_wrap=True)
    table.add_column("verified", overflow="fold")
    for artifact, backend, figures, reason in rows:
        cells = [
            artifact.file,
            _size(manifest.files[artifact.file].bytes),
            artifact.precision,
            f"{figures['error']:.1e}" if figures else "–",
            f"{artifact.tolerance if figures is None else figures['tolerance']:.0e}",
        ]
        if agreement:
            cells.append(f"{figures['agreement']:.2%}" if figures else "–")
        table.add_row(*cells, _verdict(backend, figures, reason))
    console.print(table)
    console.print()
    for artifact in manifest.artifacts:
        console.print(Text(_how(artifact), "dim"))
    for artifact, _, figures, _ in rows:
        if figures:
            answers = ", ".join(f"{name} → {answer}" for name, answer in figures["nonfinite"].items())
            console.print(Text(f"{artifact.file}: a bad value in a row gives: {answers}", "dim"))
        if figures and figures["max_relative"] > _NOTABLE:
            share = f"{artifact.file}: the error is {figures['max_relative']:.0%} of the range of the answers"
            console.print(Text(f"{share}, which are small against what is allowed: see --tolerance", "yellow"))


def print_estimates(console: Console, manifest: Manifest) -> None:
    """Prints what rounding every operator would do to a half-precision graph, where that was estimated."""
    for artifact in manifest.artifacts:
        estimate = artifact.details.get("rounded_error")
        if estimate is not None:
            rounded = f"with every operator rounded to {artifact.precision}, as in an engine"
            colour = "yellow" if estimate > artifact.tolerance else "dim"
            console.print(Text(f"{artifact.file}: {rounded}: {estimate:.1e}", colour))


def print_approximations(console: Console, manifest: Manifest) -> None:
    """Prints what the artifacts compute only within a bound, a line each."""
    for each in manifest.approximations:
        edges, pieces = (
            f"{count} {word}{'s'[: count != 1]}" for count, word in ((each.edges, "edge"), (each.pieces, "piece"))
        )
        where = f"from {each.interval[0]:g} to {each.interval[1]:g}" if each.interval else "everywhere"
        what = f"{each.function} on {edges}: {pieces} of degree {each.degree}"
        console.print(Text(f"{what}, within {each.bound:g} {where} (measured {each.error:.1e})", "dim"))


def print_fifth_operator(console: Console, manifest: Manifest) -> None:
    """Prints how Sigmoid could be avoided, where an artifact holds it."""
    for artifact in manifest.artifacts:
        if "Sigmoid" in artifact.details.get("operators", ()):
            console.print(
                Text(f"{artifact.file}: Sigmoid, a fifth operator, is for SiLU; --strict-ops avoids it", "dim")
            )


def _verdict(backend: str | None, figures: Any, reason: str | None) -> Text:
    if not figures:
        return Text(f"no: {reason}", "yellow")
    if figures["error"] > figures["tolerance"]:  # an estimate; anything else would have been an error
        return Text(f"more than allowed, {backend}", "yellow")
    return Text(f"yes, {backend}", "green")


def _how(artifact: Artifact) -> str:
    details = artifact.details
    if artifact.kind == "onnx":
        operators = ", ".join(f"{count} {name}" for name, count in details["operators"].items())
        return f"{artifact.file}: {operators}; {artifact.layout}, {artifact.form} form, opset {details['opset']}"
    least, usual, most = artifact.batch or (0, 0, 0)
    where = f"on {details['gpu']}" if details.get("gpu") else "ahead of time, without a GPU"
    return (
        f"{artifact.file}: {_NAMES[artifact.kind]} {details['version']}, built in {details['build_seconds']:.2f} s "
        f"{where}; batches {least} to {most}, fastest at {usual}"
    )


def _size(count: int) -> str:
    return f"{count / 1000:.0f} kB" if count < 1e6 else f"{count / 1e6:.1f} MB"
