"""What the parts of the GPU benchmark share: networks, their bundles and engines, and a sweep into the record."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from relukan_deploy._tensorrt import Flavour, import_tensorrt
from relukan_deploy.api import Check, export, verify
from relukan_deploy.bench.environment import available_bytes
from relukan_deploy.bench.limits import with_ideals
from relukan_deploy.bench.results import OURS, Contender, Series
from relukan_deploy.bench.subjects import Subject
from relukan_deploy.bench.subjects.bundles import artifact_for, engine_subjects
from relukan_deploy.bench.sweep import Effort, sweep
from relukan_deploy.bundle import Artifact, Bundle
from relukan_deploy.errors import ParityError, RelukanError
from relukan_deploy.exporters.to_onnx import to_onnx
from relukan_deploy.exporters.to_tensorrt import EngineOptions, build_engine
from relukan_deploy.parity import TOLERANCES, compare, golden_inputs
from relukan_deploy.runtime._cuda import Cuda
from relukan_deploy.runtime._engine import EngineBackend
from relukan_deploy.spec import Form, KanSpec, LayerSpec, Layout, Precision

from ._gpu_record import Record

__all__ = ["PROFILE", "Machine", "Widths", "network"]

PROFILE = (1, 64, 65536)
GRID, ORDER = 5, 3

Widths = tuple[int, ...]


class Machine:
    """What all parts use.

    Args:
        record: takes what they find.
        folder: for bundles.
        effort: how long each sweep measures.
        say: told what is being done.

    Attributes:
        flavours: every TensorRT that runs here.
    """

    def __init__(self, record: Record, folder: Path, effort: Effort, say: Callable[[str], None]) -> None:
        self.record = record
        self.effort = effort
        self.say = say
        self.flavours: list[Flavour] = []
        for flavour in get_args(Flavour):
            try:
                import_tensorrt(flavour, "Measuring engines")
                require_an_answer(flavour)
                self.flavours.append(flavour)
            except RelukanError as error:
                record.skip(flavour, str(error))
        self._folder = folder
        self._bundles: dict[Path, Bundle] = {}

    def bundle(
        self,
        widths: Widths,
        flavour: Flavour | None = None,
        precision: Precision = "fp32",
        layout: Layout = "batch-last",
    ) -> Bundle:
        """The network exported, with an engine of that flavour. Its parity goes to the record.

        Raises:
            RelukanError: it cannot be made, or is out of tolerance.
        """
        path = self._folder / "-".join((*map(str, widths), flavour or "onnx", precision, layout))
        if path not in self._bundles:

            def say(doing: str) -> None:
                self.say(f"{path.name}: {doing}")

            try:
                made = export(
                    network(widths),
                    path,
                    trt=flavour is not None,
                    flavour=flavour,
                    precision=precision,
                    layout=layout,
                    engine=EngineOptions(batch=PROFILE),
                    say=say,
                )
                self._take(widths, verify(made, say=say))
            except ParityError as error:
                self._take(widths, error.checks)
                raise
            self._bundles[path] = made
        return self._bundles[path]

    def engine(self, widths: Widths, flavour: Flavour, form: Form, layout: Layout) -> list[Subject]:
        """An fp32 engine in one form, with CUDA graphs alone. Its parity goes to the record.

        Raises:
            RelukanError: it cannot be built or run, or is out of tolerance.
        """
        spec = network(widths)
        self.say(f"{list(widths)}: building {flavour}, {form} form, {layout}")
        built = build_engine(
            to_onnx(spec, layout=layout, form=form),
            in_features=widths[0],
            layout=layout,
            precision="fp32",
            options=EngineOptions(batch=PROFILE),
            flavour=flavour,
        )
        details = {"version": built.version, "build_seconds": built.build_seconds}
        artifact = Artifact(
            f"{form}.engine", flavour, "fp32", layout, form, TOLERANCES["fp32"], batch=PROFILE, details=details
        )
        backend = EngineBackend(flavour, built.plan, artifact, widths[0], widths[-1])
        x = golden_inputs(spec)
        report = compare(
            backend.run,
            x,
            spec.evaluate(x),
            domain=spec.intervals,
            tolerance=artifact.tolerance,
            task=spec.task,
            batches=(1, len(x)),
        )
        self._take(widths, [Check(artifact, flavour, report)])
        report.require(f"the engine in {form} form on {flavour}")
        return self.with_graphs(Contender(f"{form} form", widths, flavour, layout=layout), backend, spec.domain)

    def with_graphs(
        self, contender: Contender, backend: EngineBackend, domain: np.ndarray, parameters: int = 0
    ) -> list[Subject]:
        """An engine's subjects without those that use no CUDA graphs."""
        subjects = engine_subjects(contender, lambda graphs: backend, domain, parameters=parameters, difference=None)
        return [subject for subject in subjects if subject.contender.cuda_graph]

    def measure(self, subjects: Iterable[Subject], bundle: Bundle, batches: Sequence[int]) -> None:
        """Times subjects in turns, into the record, and closes them. What is in the record is not timed again."""
        opened = list(subjects)
        wanted = [subject for subject in opened if not self.record.has(subject.contender, batches)]
        try:
            memory = min(available_bytes(), self._free_on_gpu()) // 2
            points = sweep(wanted, batches, self.effort, memory=memory, say=self.say)
        finally:
            for subject in opened:
                subject.close()
        series = [
            Series(subject.contender, 0, subject.parameters, subject.difference, found)
            for subject, found in zip(wanted, points, strict=True)
        ]
        for one in with_ideals(series, bundle, self.record.peaks):
            self.record.add(one)

    def limit_others(self) -> None:
        """Gives what another Python has measured its distance from the limits that were measured here."""

        def limited(one: Series) -> Series:
            if one.contender.network != OURS:
                return one
            return with_ideals([one], self.bundle(one.contender.widths), self.record.peaks)[0]

        self.record.others = [
            dataclasses.replace(results, series=tuple(map(limited, results.series))) for results in self.record.others
        ]

    def _free_on_gpu(self) -> int:
        with Cuda() as cuda:
            return cuda.free_bytes()

    def _take(self, widths: Widths, checks: Iterable[Check]) -> None:
        for check in checks:
            artifact, found = check.artifact, check.report.as_dict() if check.report else {}
            self.record.rows["parity"].append(
                {
                    "network": list(widths),
                    "backend": check.backend,
                    "version": artifact.details.get("version"),
                    "precision": artifact.precision,
                    "layout": artifact.layout,
                    "form": artifact.form,
                    "passed": check.report.passed if check.report else None,
                    "reason": check.reason,
                    **{name: value for name, value in found.items() if name != "worst_input"},
                }
            )


def require_an_answer(flavour: Flavour) -> None:
    """Lets a TensorRT answer in a process of its own first: one that crashes on this GPU ends nothing else.

    Raises:
        RelukanError: it does not answer.
    """
    code = f"from benchmarks import _gpu_machine; _gpu_machine.answer({flavour!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise RelukanError(f"it does not answer on this GPU (exit code {done.returncode}): {said}")


def answer(flavour: Flavour) -> None:
    """Leaves with a reason where an engine is not verified here."""
    with tempfile.TemporaryDirectory() as folder:
        made = export(
            network((2, 5, 1)), Path(folder, "bundle"), trt=True, flavour=flavour, engine=EngineOptions(batch=PROFILE)
        )
        artifact = artifact_for(made, flavour)
        if not artifact.verified:
            sys.exit(artifact.reason)


def network(widths: Widths) -> KanSpec:
    """A network as training leaves it: each input has its own s and e. The same one every time, and without PyTorch."""
    generator, steps = np.random.default_rng(0), np.arange(-ORDER, GRID)

    def layer(inputs: int, outputs: int) -> LayerSpec:
        starts, ends = (
            edge / GRID + generator.normal(0, 0.1 / GRID, (inputs, len(steps))) for edge in (steps, steps + ORDER + 1)
        )
        coefficients = generator.normal(0, 0.25 / np.sqrt(inputs), (outputs, inputs, len(steps)))
        return LayerSpec(starts, ends, coefficients, generator.uniform(0.2, 0.8, outputs))

    return KanSpec(tuple(layer(*pair) for pair in itertools.pairwise(widths)))
