# `make demo` shows the whole product on real parts; `make test` runs every test. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH := 2.13.0
export OMP_NUM_THREADS ?= 1
# Images set it; each run, each command that a test starts and each engine would compile all of our modules anew.
unexport PYTHONDONTWRITEBYTECODE

# Folders with a run of their own in `make check`; `unit-rest` runs all others.
SHARDS := controller evaluation cli
# Folders whose tests wait for no clock: `make test` runs them beside the others, with what these leave of the CPU.
SIMULATED := tests/calibration tests/properties tests/unit/evaluation \
    $(addprefix tests/unit/controller/,evidence planning rollout views)
QUICK := $(BIN)/python -m pytest -q -m "not integration and not calibration and not slow"

.PHONY: demo test tests-real tests-simulated check bench bench-gate bench-router soak lint types unit $(SHARDS:%=unit-%) unit-rest clean install reference

demo: $(STAMP)
	$(BIN)/canaryctl demo

# Two runs side by side: simulations (nice) take what real engines leave of two cores, and never make one late.
# The simulations' output comes whole, at their end.
test: $(STAMP)
	@$(MAKE) --no-print-directory -j2 tests-real tests-simulated

tests-real: $(STAMP)
	$(BIN)/python -m serving.checkpoints
	$(BIN)/python -m pytest --durations=60 --durations-min=4 $(SIMULATED:%=--ignore=%)

tests-simulated: $(STAMP)
	@mkdir -p .cache; nice -n 19 $(BIN)/python -m pytest -p no:cacheprovider --timeout=3600 \
	    --durations=30 --durations-min=10 $(SIMULATED) >.cache/simulated.log 2>&1; code=$$?; cat .cache/simulated.log; exit $$code

# All at a time on two cores: some tests wait for a clock. Not one run with two workers: each would import and
# collect everything, 10 s of CPU in a fresh clone.
check: $(STAMP)
	@$(MAKE) --no-print-directory -j5 --output-sync=target types unit lint

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

unit: $(SHARDS:%=unit-%) unit-rest

$(SHARDS:%=unit-%): unit-%: $(STAMP)
	$(QUICK) tests/unit/$*

unit-rest: $(STAMP)
	$(QUICK) tests/unit tests/properties tests/scenarios tests/contracts $(SHARDS:%=--ignore=tests/unit/%)

bench: $(STAMP)
	$(BIN)/python -m benchmarks.router --only canaryctl
	$(BIN)/python -m benchmarks.gate --quick

bench-router: $(STAMP)
	$(BIN)/python -m benchmarks.router --install
	$(BIN)/python -m benchmarks.router --plot
	$(BIN)/python -m benchmarks.router.streams --ceiling
	$(BIN)/python -m benchmarks.router.on_serve
	$(BIN)/python -m benchmarks.router.hostile

bench-gate: $(STAMP)
	$(BIN)/python -m benchmarks.gate
	CANARYCTL_TEST_RUNS=all $(BIN)/python -m pytest --timeout=7200 tests/calibration

soak: $(STAMP)
	$(BIN)/python -m benchmarks.soak

reference: $(STAMP)
	$(BIN)/python -m controller.cli.reference

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v not in ((3, 11), (3, 12)) and f"python {v[0]}.{v[1]} is not supported; use 3.11 or 3.12: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "no venv module: apt install -y python3-venv"; exit 1; }
	@if nvidia-smi >/dev/null 2>&1; then \
	    echo "installing for NVIDIA GPUs (some minutes)"; \
	    $(BIN)/pip install -q -c constraints.txt -e '.[gpu,dev]'; \
	else \
	    echo "installing the CPU build (about two minutes)"; \
	    $(BIN)/pip install -q 'torch==$(TORCH)+cpu' 2>$(VENV)/torch.log || { \
	        echo "plain pip knows no CPU wheel of torch here; uv knows where PyTorch keeps them"; \
	        $(BIN)/pip install -q uv && $(BIN)/uv pip install -q --python $(BIN)/python --torch-backend=cpu 'torch==$(TORCH)'; } && \
	    $(BIN)/pip install -q -c constraints.txt -e '.[cpu,dev]' && \
	    : "they come as CUDA builds and break imports (torchvision::nms does not exist); text models need none of them" && \
	    $(BIN)/pip uninstall -q -y torchvision torchaudio torchcodec; \
	fi
	@touch $@

clean:
	rm -rf $(VENV) .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
