# Two commands on a fresh machine: `make demo` runs the main job, `make test` the tests.
# Each does all of its own set-up, from constraints.txt: the demo into .venv, the tests into .venv-dev, so that what the
# tests need (a torchvision among it) never changes the environment you work in. Python 3.11 or newer; no MPI, no GPU,
# no root.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEV    := .venv-dev/bin

.PHONY: demo federation-demo test test-all gpu-check lint docs clean dist wheelhouse

# -- set-up ---------------------------------------------------------------------------------------

# torch first and alone: the rest then takes it as it is.
$(VENV)/.base: constraints.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[mpi]"
	touch $@

.venv-dev/.done: constraints.txt setup.py
	test -x $(DEV)/python || $(PYTHON) -m venv .venv-dev
	$(DEV)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(DEV)/pip install --quiet --constraint constraints.txt --editable ".[mpi,timm,privacy,federation,dev]"
	$(DEV)/pip install --quiet --no-deps --constraint constraints.txt --upgrade --target .venv-dev/examples $(EXAMPLES)
	touch $@

# What some examples need. Apart, for torchmetrics imports transformers wherever it finds it; their other requirements
# are there, and torch must stay as it is.
EXAMPLES := transformers peft monai accelerate psutil regex tokenizers

# Lightning by its other name: a second environment with that package alone, and all else from the first. Tests find it
# by COLEARN_LIGHTNING_PYTHON.
SITE := import sysconfig; print(sysconfig.get_path('purelib'))
build/lightning/.done: .venv-dev/.done
	$(DEV)/python -m venv build/lightning
	build/lightning/bin/pip install --quiet --no-deps "$$(grep '^lightning==' constraints.txt)"
	{ $(DEV)/python -c "$(SITE)"; echo "$(CURDIR)"; } > "$$(build/lightning/bin/python -c "$(SITE)")/everything_else.pth"
	touch $@

# -- what people type -----------------------------------------------------------------------------

# Five data centers, real handwritten digits, about a minute.
demo: $(VENV)/.base
	$(BIN)/colearn-hpc data digits --out data/digits --centers 5
	$(BIN)/colearn-hpc launch --centers 5 -- fit --config configs/quickstart.yaml --overwrite
	$(BIN)/colearn-hpc report runs/quickstart
	@echo "shared model: runs/quickstart/shared.ckpt"

# Three sites of a federation, each with an mpirun of its own, one killed and coming back; then the same as one MPI world.
federation-demo: .venv-dev/.done
	$(DEV)/python examples/federation/demo.py

# Three test files at a time, for many wait: for a Slurm, for a data center, for a time to pass. The longest come first.
test: .venv-dev/.done
	$(DEV)/python -m pytest --numprocesses 3 --no-loadscope-reorder

# The exhaustive sets whole, where `make test` takes a seeded sample of them. Hours.
test-all: .venv-dev/.done
	$(DEV)/python -m pytest --numprocesses 3 --no-loadscope-reorder --all

# Where there is a GPU: all that needs one, in less than 8 minutes. It installs nothing, for torch must be the CUDA build
# that the machine has; `sh tests/gpu/run.sh --device cpu` rehearses it anywhere.
gpu-check:
	sh tests/gpu/run.sh

lint: .venv-dev/.done
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/mypy

# The documentation site, in build/site; a warning or a dead link is an error.
docs: .venv-dev/.docs
	$(DEV)/python docs/site/build.py

.venv-dev/.docs: .venv-dev/.done
	$(DEV)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# -- for a release (packaging/RELEASING.md) -------------------------------------------------------

# sdist and wheel, in dist/.
dist: .venv-dev/.done
	rm -rf dist
	$(DEV)/python -m build --no-isolation

# All that an installation without a network needs, in wheelhouse/; for this Python and this kind of machine.
wheelhouse: dist
	$(DEV)/pip download --constraint constraints.txt --dest wheelhouse "$$(ls dist/*.whl)[mpi]"

clean:
	rm -rf $(VENV) .venv-dev build dist wheelhouse *.egg-info
