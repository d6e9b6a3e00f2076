# %% [markdown]
# # From pykan to TensorRT
#
# Trains a small network with pykan, exports it, and compares what both answer, and how fast.
# It needs `pip install 'relukan-deploy[bench]'`, which brings pykan and TensorRT-RTX. Open it as a notebook in an
# editor that knows `# %%` cells, or run it whole: `python examples/pykan_to_tensorrt.py`.

# %%
import tempfile
import timeit
from pathlib import Path

import numpy as np
import torch
from kan import KAN, create_dataset

import relukan_deploy

torch.set_num_threads(1)  # so that the times below are of the networks alone
folder = tempfile.TemporaryDirectory()  # everything here goes into it


# %% [markdown]
# ## Train
#
# pykan's first example. `fit` moves the knots to where the data are: they become uneven, and the export keeps them
# as they are. With `auto_save=False` pykan writes nothing by itself; otherwise `./model` would fill up.


# %%
def target(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2)


dataset = create_dataset(target, n_var=2, train_num=1000, seed=0)
model = KAN(width=[2, 5, 1], grid=5, k=3, seed=0, auto_save=False)
losses = model.fit(dataset, opt="LBFGS", steps=20)
print(f"root mean square error on new points: {float(losses['test_loss'][-1]):.1e}")

# %% [markdown]
# ## Export
#
# `saveckpt` writes three files; `export` reads them without running anything that is in them. The bundle holds the
# graph, the engine, inputs with their right answers, and a manifest. Each file was compared with a float64 reference
# before it took its place. An engine needs a GPU for that: without one it is built all the same, and marked.

# %%
model.saveckpt(f"{folder.name}/mark")
bundle = relukan_deploy.export(f"{folder.name}/mark", trt=True)
for artifact in bundle.manifest.artifacts:
    if artifact.parity:
        print(f"{artifact.file}: largest error {artifact.parity['error']:.1e}, on {artifact.parity['backend']}")
    else:
        print(f"{artifact.file}: {Path(bundle.path, artifact.file).stat().st_size / 1e6:.1f} MB, {artifact.reason}")

# %% [markdown]
# ## Answer
#
# `load` takes the fastest backend that runs here. Rows outside of what pykan's knots cover are answered as pykan
# does, and counted.

# %%
runner = relukan_deploy.load(bundle.path)
x = np.random.default_rng(1).uniform(-1.2, 1.2, (1024, 2)).astype(np.float32)
with torch.no_grad():
    expected = model(torch.from_numpy(x)).numpy()
largest, wrong = np.abs(expected).max(), np.abs(runner(x) - expected).max()
print(f"on {runner.backend}: answers up to {largest:.1f}, largest difference from pykan {wrong:.1e}")

far = np.array([[100.0, -100.0], [-5.0, 1e4]], dtype=np.float32)
with torch.no_grad():
    print(f"far outside: {runner(far).ravel()}, pykan {model(torch.from_numpy(far)).numpy().ravel()}")
print(f"values outside so far, by input: {runner.stats().outside}")

# %% [markdown]
# ## How fast
#
# pykan at its fastest, which leaves out its symbolic branch, against the runner with its checks and counters.

# %%
model.speed().eval()


def pykan(rows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        answers: torch.Tensor = model(rows)
    return answers


def seconds(call: object, rows: object) -> float:
    """Of one call: the best of several tries."""
    timer = timeit.Timer("call(rows)", globals={"call": call, "rows": rows})
    count, _ = timer.autorange()
    return min(timer.repeat(3, count)) / count


for batch in (1, 64, 1024):
    theirs, ours = seconds(pykan, torch.from_numpy(x[:batch])), seconds(runner, x[:batch])
    print(
        f"batch {batch:4}: pykan {theirs * 1e6:6.0f} µs, {runner.backend} {ours * 1e6:5.0f} µs, {theirs / ours:.0f} ×"
    )

runner.close()
folder.cleanup()
