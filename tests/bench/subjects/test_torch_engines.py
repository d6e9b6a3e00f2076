"""Peers in the engines that this machine has, and what is refused."""

from __future__ import annotations

import functools
import gc
import importlib.util
import subprocess
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from relukan_deploy._compiling import compiled
from relukan_deploy.bench.peers import PEERS, build
from relukan_deploy.bench.peers.mlp import MLP
from relukan_deploy.bench.peers.ours import trained_like
from relukan_deploy.bench.subjects import Shape, Subject, exports, torch_calls
from relukan_deploy.bench.subjects.networks import Inputs, Network, difference
from relukan_deploy.bench.subjects.torch_engines import ENGINES, open_network, peer_subjects
from relukan_deploy.bench.subjects.torch_subjects import TORCH_ENGINES
from relukan_deploy.errors import InputError, MissingDependencyError, RelukanError

SHAPE = Shape((2, 3, 1), grid=3, order=2, domain=np.array([[0.0, 1.0], [-1.0, 2.0]]))
NETWORKS = [*list(PEERS)[:-1], "mlp, same widths", "mlp, same parameters"]
HERE = ("torch", "onnxruntime-cpu")

for package in ("kan", "onnxscript"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install '.[bench]'", allow_module_level=True)

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="it is about a machine without a GPU")


class _Recording(nn.Module):
    """Doubles its input, and keeps the first number of each."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(float(x[0, 0]))
        return x * 2


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    """Every peer. What is exported once serves all tests."""
    return {name: Network(name, module, SHAPE) for peer in PEERS for name, module in build(peer, SHAPE).items()}


@pytest.fixture(scope="module")
def subjects(networks: dict[str, Network]) -> list[Subject]:
    """Every peer in every engine that is here."""
    torch_calls.set_up(1)
    return [
        subject
        for network in networks.values()
        for engine in HERE
        for subject in open_network(network, engine, threads=1)
    ]


def _rows(batch: int = 40) -> NDArray[np.float32]:
    x = np.random.default_rng(0).uniform(SHAPE.domain[:, 0], SHAPE.domain[:, 1], (batch, 2))
    return x.astype(np.float32)


def _network(module: nn.Module | None = None) -> Network:
    torch.manual_seed(0)
    return Network("a peer", module or MLP(SHAPE.widths), SHAPE)


# --- what there is


@no_gpu
def test_every_peer_is_there_and_ours_in_pytorch_alone() -> None:
    subjects, skipped = peer_subjects(SHAPE, ["mlp", "relu-kan"], threads=1, engines=HERE)
    ways = ("torch", "onnxruntime-cpu", "onnxruntime-cpu, graph alone")
    expected = [
        f"{network}: {way}" for network in ("mlp, same widths", "mlp, same parameters", "relu-kan") for way in ways
    ]
    assert [subject.contender.name for subject in subjects] == ["this network: torch", *expected]
    assert not skipped


def test_every_way_gives_as_many_times_as_calls_at_any_batch_size(subjects: list[Subject]) -> None:
    for subject in subjects:
        for batch in (1, 5):
            turn = subject.prepare(batch)
            assert all(seconds > 0 for seconds in turn(3)), subject.contender.name
            assert len(turn(3)) == 3
            subject.release()


@no_gpu
def test_what_was_compared_says_how_far_apart_it_was(subjects: list[Subject]) -> None:
    for subject in subjects:
        if subject.contender.engine == "torch":
            assert subject.difference is None
        else:
            assert subject.difference is not None
            assert subject.difference < 1e-5, subject.contender.name


def test_parameters_are_what_is_learnt(networks: dict[str, Network]) -> None:
    basis, edges, outputs = SHAPE.grid + SHAPE.order, 2 * 3 + 3 * 1, 3 + 1
    assert {name: network.parameters for name, network in networks.items()} == {
        "pykan": edges * (basis + 2),  # coefficients, and the scales of spline and base
        "efficient-kan": edges * (basis + 2),
        "fast-kan": edges * (basis + 1) + outputs + 2 * (2 + 3),  # base with bias; LayerNorm
        "relu-kan": edges * basis + outputs + 2 * basis * (2 + 3),  # s and e
        "mlp, same widths": edges + outputs,
        "mlp, same parameters": 3 * 12 + 12 + 1,
    }


def test_the_widths_of_the_network_with_as_many_parameters_are_its_own(networks: dict[str, Network]) -> None:
    widths = {name: network.widths for name, network in networks.items()}
    assert widths == {name: (2, 12, 1) if name == "mlp, same parameters" else (2, 3, 1) for name in NETWORKS}


@no_gpu
def test_engines_that_need_a_gpu_are_skipped_once_each_with_the_reason() -> None:
    subjects, skipped = peer_subjects(
        SHAPE, list(PEERS), threads=1, engines=("torch CUDA graph", "onnxruntime-cuda", "tensorrt-rtx")
    )
    assert not subjects
    assert [each.what for each in skipped] == ["torch CUDA graph", "onnxruntime-cuda", "tensorrt-rtx"]
    assert all("GPU" in each.why or "CUDA" in each.why or "not installed" in each.why for each in skipped)


def test_a_peer_that_is_not_installed_is_skipped_and_the_others_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kan", None)
    subjects, skipped = peer_subjects(SHAPE, ["pykan", "relu-kan"], threads=1, engines=["torch"])
    assert {subject.contender.network for subject in subjects} == {"this network", "relu-kan"}
    assert [(each.what, "relukan-deploy[bench]" in each.why) for each in skipped] == [("pykan", True)]


@pytest.mark.parametrize(
    ("names", "engines", "message"),
    [
        (["nokan"], ["torch"], "no peer is called 'nokan': choose from pykan, efficient-kan"),
        (["pykan"], ["jax"], "no engine is called 'jax': choose from torch, torch.compile, torch CUDA graph, onnx"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(names: list[str], engines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        peer_subjects(SHAPE, names, threads=1, engines=engines)


def test_without_torch_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"'torch'.*relukan-deploy\[bench\]"):
        peer_subjects(SHAPE, [], threads=1, engines=["torch"])


# --- what they compute


@pytest.mark.parametrize("batch_major", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_export_answers_as_its_module_at_any_batch_size(
    name: str, batch_major: bool, networks: dict[str, Network]
) -> None:
    import onnxruntime

    network = networks[name]
    session = onnxruntime.InferenceSession(exports.graph_of(network, batch_major=batch_major))
    trailing = (1,) if batch_major else ()
    for batch in (1, 7):
        x = _rows(batch)
        (y,) = session.run(["y"], {"x": x.reshape(*x.shape, *trailing)})
        assert y.shape == (batch, 1, *trailing)
        with torch.no_grad():
            np.testing.assert_allclose(y.reshape(batch, 1), network.module(torch.from_numpy(x)).numpy(), atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tensorrt_engine_can_be_built_of_every_peer(name: str, networks: dict[str, Network]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    plan, artifact = exports.build_plan(networks[name], "tensorrt-rtx")
    assert len(plan) > 1000
    assert artifact.batch == (1, 64, 65536)


def test_an_engine_is_for_fewer_rows_where_they_take_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    network = _network()
    monkeypatch.setattr(exports, "_SCRATCH_BYTES", network.bytes_for(5000))
    assert exports.build_plan(network, "tensorrt-rtx")[1].batch == (1, 64, 4096)


@pytest.mark.parametrize("planted", ["other weights", "another shape", "not a number"])
def test_an_export_that_is_wrong_is_refused(planted: str) -> None:
    network, wrong = _network(), MLP(SHAPE.widths)
    if planted == "another shape":
        wrong = MLP((2, 3, 2))
    if planted == "not a number":
        nn.init.constant_(wrong[0].weight, float("nan"))  # type: ignore[arg-type]
    network.graphs[False] = exports.export(wrong, 2)
    with pytest.raises(RelukanError, match=r"the export of a peer in onnxruntime-cpu .*nothing is timed"):
        open_network(network, "onnxruntime-cpu", threads=1)


def test_our_network_is_compared_with_its_float64_reference() -> None:
    ours = trained_like(SHAPE)
    with pytest.raises(RelukanError, match="this network in PyTorch is wrong by 0"):
        open_network(
            Network("this network", ours, SHAPE, reference=lambda x: ours.spec().evaluate(x) + 1), "torch", threads=1
        )


def test_a_module_that_cannot_be_exported_says_why() -> None:
    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(RelukanError, match=r"^PyTorch cannot export it: [^\n]+$"):
        exports.export(Deciding(), 2)


def test_a_network_is_exported_once_for_all_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    network, made = _network(), list[bool]()
    export = exports.export

    def counted(module: nn.Module, in_features: int, *, batch_major: bool) -> bytes:
        made.append(batch_major)
        return export(module, in_features, batch_major=batch_major)

    monkeypatch.setattr(exports, "export", counted)
    for _ in range(2):
        open_network(network, "onnxruntime-cpu", threads=1)
    assert made == [False]


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([[1.0, 2.001]], "it is wrong by 0.0005, and 0.0001 is allowed"),
        ([[1.0, np.nan]], "it is wrong by nan"),
        ([[1.0]], r"it answers \(1, 1\) where \(1, 2\) was expected"),
    ],
)
def test_a_difference_is_relative_to_the_largest_answer(y: list[list[float]], message: str) -> None:
    expected = np.array([[1.0, 2.0]])
    assert difference(np.array([[1.0, 2.0001]]), expected, "it") == pytest.approx(5e-5)
    with pytest.raises(RelukanError, match=message):
        difference(np.array(y), expected, "it")


# --- how they are run


@no_gpu
def test_calls_get_one_input_after_the_other() -> None:
    module = _Recording()
    (subject,) = open_network(_network(module), "torch", threads=1)
    turn = subject.prepare(3)
    module.seen.clear()
    turn(5)
    turn(5)
    assert len(set(module.seen)) == 10


@no_gpu
def test_nothing_is_kept_for_gradients() -> None:
    module = _Recording()
    made: list[bool] = []
    module.register_forward_hook(lambda module, given, y: made.append(torch.is_grad_enabled()))
    (subject,) = open_network(_network(module), "torch", threads=1)
    subject.prepare(2)(3)
    assert made
    assert not any(made)


def test_networks_share_their_inputs() -> None:
    inputs = Inputs(SHAPE.domain)
    first = inputs.of(4)
    assert inputs.of(4) is first
    assert inputs.of(5) is not first
    low, high = SHAPE.domain.T
    assert all(((low <= x) & (x <= high)).all() for x in first)


@pytest.mark.parametrize("engine", HERE)
def test_release_frees_the_inputs(engine: str) -> None:
    network = _network()
    for subject in open_network(network, engine, threads=1):
        turn = subject.prepare(3)
        held = weakref.ref(network.inputs.of(3)[0])
        assert len(turn(1)) == 1
        del turn
        subject.release()
        gc.collect()
        assert held() is None


@pytest.mark.parametrize("engine", HERE)
def test_close_frees_the_network_and_can_be_repeated(engine: str) -> None:
    network = _network()
    subjects = open_network(network, engine, threads=1)
    held = weakref.ref(network.module)
    for subject in subjects:
        subject.prepare(2)
        subject.close()
        subject.close()
    del network
    gc.collect()
    assert held() is None


@no_gpu
def test_what_pytorch_cannot_run_is_an_error_in_one_line() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no memory\nand advice")

    (subject,) = open_network(_network(Failing()), "torch", threads=1)
    with pytest.raises(RelukanError, match=r"^PyTorch could not run 2 rows: no memory$"):
        subject.prepare(2)


@no_gpu
def test_without_a_gpu_nobody_knows_where_the_time_goes(subjects: list[Subject]) -> None:
    for subject in subjects:
        subject.prepare(1)
        assert subject.split() is None
        subject.release()


def test_threads_and_tf32_are_set() -> None:
    peer_subjects(SHAPE, [], threads=1, engines=["torch"])
    assert torch.get_num_threads() == 1
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


# --- memory


def test_memory_grows_with_the_batch_and_a_spline_of_each_edge_takes_the_most() -> None:
    shape = Shape((4, 64, 64, 1), 5, 3, np.tile((0.0, 1.0), (4, 1)))
    taken = {
        name: [Network(name, module, shape).bytes_for(batch) for batch in (1024, 65536)]
        for peer in PEERS
        for name, module in build(peer, shape).items()
    }
    edges = 65536 * 64 * 64 * 4
    assert all(50 < most / few < 65 for few, most in taken.values())
    assert 4 * edges < taken["pykan"][1] < 7 * edges
    assert taken["mlp, same widths"][1] < taken["fast-kan"][1] < taken["efficient-kan"][1] < edges


MEASURED = """
import resource, numpy as np, torch
from relukan_deploy.bench.subjects.networks import Network
from relukan_deploy.bench.peers import build
from relukan_deploy._compiling import compiled
from relukan_deploy.bench.subjects import Shape
shape = Shape((4, 64, 64, 1), 5, 3, np.tile((0.0, 1.0), (4, 1)))
network = Network("pykan", build("pykan", shape)["pykan"], shape)
before = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
with torch.no_grad():
    network.module(torch.rand(4096, 4))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / network.bytes_for(4096))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it asks Linux how large a process is")
def test_memory_is_about_what_a_process_takes() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) < 2.0


# --- torch.compile


@pytest.mark.slow
@no_gpu
def test_a_compiled_network_is_kept_for_each_batch_size() -> None:
    network = _network()
    (subject,) = open_network(network, "torch.compile", threads=1)
    assert subject.difference is None
    counters = torch._dynamo.utils.counters["stats"]
    for batch in (2, 3, 2, 3):
        assert len(subject.prepare(batch)(2)) == 2
        subject.release()
    before = counters["unique_graphs"]
    subject.prepare(2)
    assert counters["unique_graphs"] == before
    assert 0 <= (subject.difference or 0.0) < 1e-5


@pytest.mark.slow
def test_more_batch_sizes_are_compiled_than_pytorch_allows_one_function() -> None:
    import torch._dynamo.config as config

    function = functools.partial(torch.mul, 2)
    with config.patch(fail_on_recompile_limit_hit=True, recompile_limit=2):
        for rows in range(1, 6):
            x = torch.rand(rows, 1)
            fast = compiled(function, x)
            assert torch.equal(fast(x), 2 * x)


@pytest.mark.slow
def test_a_missing_compiler_is_named_in_one_line() -> None:
    import torch._inductor.config as config

    wanted = {"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}
    with config.patch(wanted), pytest.raises(RelukanError, match=r"^torch\.compile failed: .*no-such-compiler[^\n]*$"):
        compiled(torch.sin, torch.rand(3))


def _failing(*arguments: Any) -> Any:
    raise RelukanError("torch.compile failed: nobody knows why")


@no_gpu
def test_a_network_that_cannot_be_compiled_says_so_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relukan_deploy.bench.subjects.networks.compiled", _failing)
    (subject,) = open_network(_network(), "torch.compile", threads=1)
    for _ in range(2):
        with pytest.raises(RelukanError, match="nobody knows why"):
            subject.prepare(1)


def test_engines_are_those_of_pytorch_and_of_bundles() -> None:
    from relukan_deploy.runtime import BACKENDS

    assert set(ENGINES) == {*TORCH_ENGINES, *BACKENDS}
