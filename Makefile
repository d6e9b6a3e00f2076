# Each target sets up what it needs: a virtual environment with pinned versions.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TRITON := .venv-triton
RAY    := .venv-ray
# Ray listens on every interface: in namespaces of its own there is none, and nothing outlives the test.
ALONE  := unshare --map-root-user --net --pid --mount --mount-proc --fork --kill-child

.PHONY: demo test test-ray lint bench experiments bench-gpu gpu-wheels bench-serving clean

demo: $(READY)  ## handwritten digits: train, export, verify, predict
	$(BIN)/python demo/digits.py

test: lint $(VENV)/.ready-bench $(TRITON)/.ready  ## everything that can be tested on this machine
	$(BIN)/python -m pytest -n 2

test-ray: $(RAY)/.ready  ## Ray Serve on two nodes; skipped where namespaces are not allowed
	timeout --foreground --signal KILL 600 $$($(ALONE) true && echo $(ALONE)) $(RAY)/bin/python -m pytest -rs tests/cluster

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready-bench  ## the figures of the README, on this CPU, in a quarter of an hour
	$(BIN)/python -m benchmarks.inference_cpu --json benchmarks/results/cpu-x86-64/inference_cpu.json
	$(BIN)/python -m benchmarks.inference_cpu --isolate --json benchmarks/results/cpu-x86-64/pykan_alone.json
	$(BIN)/python -m benchmarks.imported --json benchmarks/results/cpu-x86-64/imported.json
	$(BIN)/python -m benchmarks.forms --json benchmarks/results/cpu-x86-64/forms.json
	$(BIN)/python -m benchmarks.startup --json benchmarks/results/cpu-x86-64/startup.json
	$(BIN)/python -m benchmarks.runner --json benchmarks/results/cpu-x86-64/runner.json
	$(BIN)/python -m benchmarks.batcher --json benchmarks/results/cpu-x86-64/batcher.json
	$(BIN)/python -m benchmarks.readme

experiments: $(VENV)/.ready-bench  ## the ReLU-KAN paper's experiments, on this CPU: tables and pictures
	$(BIN)/python -m benchmarks.fitting --json benchmarks/results/cpu-x86-64/fitting.json
	$(BIN)/python -m benchmarks.training_speed --json benchmarks/results/cpu-x86-64/training_speed.json
	$(BIN)/python -m benchmarks.forgetting --json benchmarks/results/cpu-x86-64/forgetting.json
	$(BIN)/python -m benchmarks.readme

# WHEELS=DIR: without a network, from what gpu-wheels left. ENGINES=PATH: another Python, which has a TensorRT.
bench-gpu: $(VENV)/$(if $(WHEELS),.ready-wheels,.ready-bench)  ## everything about this GPU, in eight minutes
	$(BIN)/python -m benchmarks.gpu $(if $(ENGINES),--python $(ENGINES))

gpu-wheels:  ## what bench-gpu needs besides PyTorch, in folders of at most 50 MiB
	$(PYTHON) benchmarks/gpu_wheels.py download build/gpu-wheels

$(VENV)/.ready-wheels:
	$(PYTHON) benchmarks/gpu_wheels.py install $(WHEELS) $(VENV)
	touch $@

bench-serving: $(VENV)/.ready-bench $(TRITON)/.ready  ## relukan-serve beside Triton; needs wrk, and a quarter of an hour
	$(BIN)/python -m benchmarks.serving --json benchmarks/results/cpu-x86-64/serving.json
	$(BIN)/python -m benchmarks.serving --reload --json benchmarks/results/cpu-x86-64/reload.json
	$(BIN)/python -m benchmarks.serving --minutes 10 --json benchmarks/results/cpu-x86-64/soak.json

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.ready-bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

# Ray's many packages stay apart; the bundles of its tests are exported without torch.
$(RAY)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[ray]' ml-dtypes onnx pytest
	touch $@

# A real tritonserver for tests/serving, in 15 seconds. Where it cannot be had, they are skipped.
$(TRITON)/.ready: benchmarks/triton/setup.sh
	sh $< $(@D)

clean:
	rm -rf $(VENV) $(TRITON) $(RAY) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
