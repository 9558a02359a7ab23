# Two commands on a fresh machine: `make demo` runs the main job, `make test` the tests.
# Each does all of its own set-up, into .venv, from constraints.txt. Python 3.11 or newer; no MPI, no GPU, no root.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint clean

# -- set-up ---------------------------------------------------------------------------------------

# torch first and alone: the rest then takes it as it is.
$(VENV)/.base: constraints.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[mpi]"
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[mpi,timm,privacy,dev]"
	touch $@

# -- what people type -----------------------------------------------------------------------------

# Five data centers, real handwritten digits, about a minute.
demo: $(VENV)/.base
	$(BIN)/colearn-hpc data digits --out data/digits --centers 5
	$(BIN)/colearn-hpc launch --centers 5 -- fit --config configs/quickstart.yaml --overwrite
	$(BIN)/colearn-hpc report runs/quickstart
	@echo "shared model: runs/quickstart/shared.ckpt"

# Two test files at a time: one waits for a Slurm or for a data center, the other has the cores. The longest come first.
test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
