"""The package as a whole: what it offers, what importing it costs, and who imports whom."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import relukan_deploy
from relukan_deploy.errors import MissingDependencyError

PACKAGE = Path(relukan_deploy.__file__).parent
MODULES = {
    ".".join(("relukan_deploy", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
HEAVY = (
    *("cuda", "ml_dtypes", "onnx", "onnxruntime", "polars", "safetensors", "tensorrt", "tensorrt_rtx", "torch"),
    *("grpc", "httptools", "orjson", "prometheus_client", "ray", "starlette", "tritonclient", "uvicorn", "uvloop"),
    *("kan", "matplotlib", "plotly"),
)

# Each module belongs to the row with its longest name; a row imports rows below it, and its own.
# The first names of a tuple are DESIGN.md's; the private ones are what those rooms are made of.
ROWS: tuple[tuple[str, ...], ...] = (
    ("cli", "bench"),
    ("api", "_recipe"),
    ("exporters", "runtime"),
    ("importers", "checkpoint", "train", "pruning", "plotting", "parity", "bundle", "training"),
    ("model", "refinement", "approximation", "lowering", "table", "_tabular", "_drawing", "_edges"),
    ("spec", "splines", "gpu", "_compiling", "_files", "_tensorrt"),
    ("errors",),
)
NEVER_EACH_OTHER = ("exporters", "runtime")


def run_python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- what it offers


def test_all_is_sorted_and_is_what_dir_offers() -> None:
    assert relukan_deploy.__all__ == sorted(relukan_deploy.__all__) == dir(relukan_deploy)


@pytest.mark.parametrize("name", relukan_deploy.__all__)
def test_every_name_offered_is_there(name: str) -> None:
    assert getattr(relukan_deploy, name) is getattr(relukan_deploy, name)


def test_a_name_that_is_not_offered_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'relukan_deploy' has no attribute 'nothing'"):
        _ = relukan_deploy.nothing


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if "__all__" in path.read_text()])
def test_every_module_has_what_it_lists_once_each(name: str) -> None:
    module = __import__(name, fromlist=["__all__"])
    assert len(set(module.__all__)) == len(module.__all__)
    assert all(hasattr(module, each) for each in module.__all__)


@pytest.mark.parametrize("room", ["exporters", "runtime"])
def test_both_rooms_are_seen_at_the_top_of_the_repository(room: str) -> None:
    link = PACKAGE.parent / room
    assert link.is_symlink()
    assert link.resolve() == PACKAGE / room


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()


# --- what importing it costs


def test_importing_the_package_imports_nothing_but_itself_and_the_standard_library() -> None:
    before_and_after = run_python(
        "import sys, json; before = set(sys.modules); import relukan_deploy; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    ours = set(json.loads(before_and_after)) - set(sys.stdlib_module_names)
    assert ours == {"relukan_deploy"}


IMPORT_WITHOUT = """
import importlib, sys, json
blocked, modules = json.loads(sys.argv[1])
for name in blocked:
    sys.modules[name] = None
for name in modules:
    importlib.import_module(name)
"""
NEED_TORCH = {
    *(
        "relukan_deploy.model",
        "relukan_deploy.pruning",
        "relukan_deploy.refinement",
        "relukan_deploy.train",
        "relukan_deploy.bench.fitting",
    ),
    *(name for name in MODULES if name.startswith(("relukan_deploy.bench.peers.", "relukan_deploy.training."))),
}
SERVER = "relukan_deploy.runtime.serving."  # imported by what says first that its extra is missing


@pytest.mark.slow
def test_every_module_imports_where_no_extra_is_installed() -> None:
    modules = [name for name in MODULES if name not in NEED_TORCH and not name.startswith(SERVER)]
    run_python(IMPORT_WITHOUT, json.dumps([HEAVY, modules]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"relukan_deploy.{name}" for name in ("runtime", "api", "cli.export", "cli.bench")])
def test_serving_exporting_and_timing_import_no_heavy_package_before_they_need_it(name: str) -> None:
    loaded = run_python(f"import sys, json, {name}; print(json.dumps(sorted(sys.modules)))")
    assert not {each.partition(".")[0] for each in json.loads(loaded)} & set(HEAVY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ReLUKAN", "ReLUKANLayer", "fit", "prune", "refine"])
def test_a_name_that_needs_torch_says_how_to_install_it(name: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import relukan_deploy\n"
        "try:\n"
        f"    relukan_deploy.{name}\n"
        "except relukan_deploy.errors.MissingDependencyError as error:\n"
        "    print(error)"
    )
    assert run_python(code).strip() == str(MissingDependencyError(f"relukan_deploy.{name}", "torch", "train"))


# --- who imports whom


def imports_of(name: str) -> set[str]:
    """The modules of this package that a module imports, at its top or in a function.

    What stands under ``if TYPE_CHECKING:`` counts too: rooms do not know each other's types either.
    """
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(above + ([node.module] if node.module else []))
            names = [each.name for each in node.names if each.name != "__version__"]
            found |= {f"{base}.{name}" if f"{base}.{name}" in MODULES else base for name in names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return {each for each in found if each.partition(".")[0] == "relukan_deploy"}


def room_of(name: str) -> str:
    """The first part of a module's name inside the package."""
    return name.split(".")[1]


def row_of(name: str) -> int:
    return next(number for number, rooms in enumerate(ROWS) if room_of(name) in rooms)


INSIDE = [name for name in MODULES if name != "relukan_deploy"]


def test_every_module_has_a_row() -> None:
    rooms = {room_of(name) for name in INSIDE}
    assert rooms <= {room for row in ROWS for room in row}


def test_imports_are_found_by_this_test() -> None:
    assert "relukan_deploy.lowering" in imports_of("relukan_deploy.exporters.to_onnx")
    assert "relukan_deploy.model" in imports_of("relukan_deploy.checkpoint")
    assert "relukan_deploy.errors" in imports_of("relukan_deploy.spec")


@pytest.mark.parametrize("name", INSIDE)
def test_a_module_imports_downwards_only(name: str) -> None:
    # The package itself imports any room lazily; only the commands may go through it.
    upwards = {
        each
        for each in imports_of(name)
        if (row_of(name) > 0 if each == "relukan_deploy" else row_of(each) < row_of(name))
    }
    assert not upwards


@pytest.mark.parametrize("name", INSIDE)
def test_exporters_and_runtime_never_import_each_other(name: str) -> None:
    if room_of(name) in NEVER_EACH_OTHER:
        (other,) = set(NEVER_EACH_OTHER) - {room_of(name)}
        assert not [each for each in imports_of(name) if each.startswith(f"relukan_deploy.{other}")]


@pytest.mark.parametrize("name", INSIDE)
def test_no_file_is_named_like_a_package_it_wraps(name: str) -> None:
    assert name.rpartition(".")[2] not in {"onnx", "tensorrt", "torch"}
