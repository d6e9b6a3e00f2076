"""How a network becomes a graph and an engine: `Recipe`, and the one that suffices, which `choose` finds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._tensorrt import Flavour
from .approximation import approximations
from .bundle import ENGINE, ONNX, Artifact
from .exporters.to_onnx import count_operators, serialise
from .exporters.to_tensorrt import Engine, EngineOptions, build_engine
from .lowering import Graph, candidate_forms, lower
from .parity import STANDARD_BATCHES, TOLERANCES, Run, compare
from .runtime._session import SessionBackend, make_session
from .spec import Form, KanSpec, Layout, Precision
from .splines import SplineSpec

__all__ = ["Made", "Recipe", "Say", "choose"]

Say = Callable[[str], None]
"""Called with what is being done now, in a few words."""

Made = tuple[Artifact, bytes]
"""An artifact and the contents of its file."""

_INNER_ROWS = 512
_INNER_SHARE = 1.5  # what they may differ more: they are plain rows, the others are sought out for being hard


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """How the artifacts of a network are written, but for the form.

    Args:
        spec: the network.
        layout, precision: of all of them; model.onnx is fp32 where the engine may use TF32.
        tolerance: the largest error allowed; None for `TOLERANCES[precision]`.
        strict, bound: as for `lower`.
    """

    spec: KanSpec
    layout: Layout
    precision: Precision
    tolerance: float | None
    strict: bool
    bound: float

    def graph(self, form: Form) -> Made:
        """model.onnx."""
        stored: Precision = "fp32" if self.precision == "tf32" else self.precision
        graph = self._lower(form, stored)
        model = serialise(graph)
        artifact = Artifact(
            file=ONNX,
            kind="onnx",
            precision=stored,
            layout=self.layout,
            form=form,
            tolerance=self.tolerance or TOLERANCES[stored],
            constants=_constant_shapes(graph),
            details={"operators": count_operators(model, graph.operators), "opset": 22 if stored == "bf16" else 13},
        )
        return artifact, model

    def engine(self, form: Form, options: EngineOptions, flavour: Flavour | None, say: Say) -> Made:
        """model.engine."""
        graph = self._lower(form, self.precision)
        built = build_engine(
            serialise(graph),
            in_features=self.spec.in_features,
            layout=self.layout,
            precision=self.precision,
            options=options,
            flavour=flavour,
            progress=lambda phase, done, total: say(f"building the engine: {phase.lower()} {done}/{total}"),
        )
        artifact = Artifact(
            file=ENGINE,
            kind=built.flavour,
            precision=self.precision,
            layout=self.layout,
            form=form,
            tolerance=self.tolerance or TOLERANCES[self.precision],
            batch=options.batch,
            constants=_constant_shapes(graph),
            details=_engine_details(built, options),
        )
        return artifact, built.plan

    def _lower(self, form: Form, precision: Precision) -> Graph:
        return lower(
            self.spec, layout=self.layout, form=form, precision=precision, strict=self.strict, bound=self.bound
        )


def choose(
    recipe: Recipe, *, batch: int, x: NDArray[np.float32], reference: NDArray[np.float64]
) -> tuple[Recipe, Form, Made]:
    """The recipe and the form to write model.onnx in, and the graph.

    The fastest form that is within half the tolerance on the rows x ``(rows, in)``, whose right answers are the
    reference ``(rows, out)``, and within three quarters of it on others between the inner knots, for themselves;
    where none is, the fastest that is nearly as good as the best.
    Where something is approximated and that is too coarse for the tolerance, the bound is drawn closer, ten times and
    a hundred times. In half precision there is nothing to choose.
    """
    forms = candidate_forms(recipe.spec, layout=recipe.layout, precision=recipe.precision, batch=batch)
    single = recipe.precision in ("fp32", "tf32")
    approximated = single and approximations(recipe.spec, strict=recipe.strict, bound=recipe.bound)
    parts = (1, 10, 100) if approximated else (1,)
    if len(forms) == len(parts) == 1:
        return recipe, forms[0], recipe.graph(forms[0])
    tolerance = recipe.tolerance or TOLERANCES["fp32"]
    inner, tried = _between_inner_knots(recipe.spec), []
    compared = [(x, reference, 1.0), (inner, recipe.spec.evaluate(inner), _INNER_SHARE)]
    for part, form in itertools.product(parts, forms):
        closer = dataclasses.replace(recipe, bound=recipe.bound / part)
        made = closer.graph(form)
        run = _runnable(made, recipe.spec)
        error = max(_error(run, recipe.spec, rows, right, tolerance) / share for rows, right, share in compared)
        if error <= tolerance / 2:
            return closer, form, made
        tried.append((error, closer, form))
    least = min(error for error, _, _ in tried)
    enough = min(1.5 * least, max(least, tolerance))
    closer, form = next((closer, form) for error, closer, form in tried if error <= enough)
    return closer, form, closer.graph(form)


def _between_inner_knots(spec: KanSpec) -> NDArray[np.float32]:
    """Random rows where a network of splines was trained, ``(512, in)``.

    Nearer to the outer knots its answers can be a hundred times as large, and differences that are small beside those
    are not beside the answers here.
    """
    first = spec.layers[0]
    knots = first.grid_range if isinstance(first, SplineSpec) else first.breaks
    generator = np.random.default_rng(1)
    return generator.uniform(knots.min(axis=1), knots.max(axis=1), (_INNER_ROWS, spec.in_features)).astype(np.float32)


def _runnable(made: Made, spec: KanSpec) -> Run:
    artifact, model = made
    session = functools.partial(make_session, providers=["CPUExecutionProvider"], threads=1)
    return SessionBackend("onnxruntime-cpu", session, model, artifact, spec.out_features).run


def _error(run: Run, spec: KanSpec, x: NDArray[np.float32], reference: NDArray[np.float64], tolerance: float) -> float:
    return compare(
        run,
        x,
        reference,
        tolerance=tolerance,
        domain=spec.intervals,
        task=spec.task,
        batches=(*STANDARD_BATCHES, len(x)),  # each may be computed in another order
    ).error


def _constant_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in graph.constants.items()}


def _engine_details(engine: Engine, options: EngineOptions) -> dict[str, Any]:
    return {
        "version": engine.version,
        "gpu": engine.gpu.name if engine.gpu else None,
        "compute_capability": engine.gpu.compute_capability if engine.gpu else None,
        "cuda": engine.gpu.cuda if engine.gpu else None,
        "build_seconds": round(engine.build_seconds, 3),
        "workspace": options.workspace,
        "refittable": options.refittable,
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
    }
