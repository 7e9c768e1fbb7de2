# Everything a newcomer, an operator and CI call. Nothing to install first but Python 3.11+ with venv, and make.
PYTHON ?= python3
VENV   ?= .venv
ENGINE ?= docker
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help serve test testimage lint format train bench soak image stubs lock docs clean

help: ## Show what can be done.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	  { echo "digitserve needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Locks first, with hashes; then the project itself, which has none.
define install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$(1).txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(VENV)/.$(1)
endef

$(VENV)/.serve: requirements/serve.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing what serving needs into $(VENV) ..."
	$(call install,serve)

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing what training and tests need into $(VENV), TensorFlow included (2 GB, about a minute) ..."
	$(call install,dev)
	@touch $(VENV)/.serve

serve: $(VENV)/.serve ## Serve the newest model in models/ on gRPC port 50051 and HTTP port 8080. ARGS=... adds flags.
	@exec $(BIN)/digitserve serve $(ARGS)

test: $(VENV)/.dev ## Run all tests. ARGS=... goes to pytest.
	$(BIN)/python -m pytest $(ARGS)

testimage: $(VENV)/.dev ## Build the image over a base made of Debian packages, and run it (needs root, podman, buildah, runc, mmdebstrap).
	$(BIN)/python -m pytest tests/image $(ARGS)

lint: $(VENV)/.dev ## Check style, types, import directions, the proto, stale stubs and stale tables.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/check_generated.py
	$(BIN)/python -m cogapp --check --diff README.md docs/models.md

format: $(VENV)/.dev ## Bring the code into shape.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: $(VENV)/.dev ## Train the default network on MNIST, evaluate it, and export it as the next version in models/.
	$(BIN)/digitserve-train train --run-dir runs/default
	$(BIN)/digitserve-train evaluate runs/default
	$(BIN)/digitserve-train export runs/default

bench: $(VENV)/.dev ## Measure against targets and a grpc.aio service, and write docs/benchmarks.md; ARGS="--against COMMIT" compares two commits.
	$(BIN)/python -m benchmarks.compare $(if $(findstring --against,$(ARGS)),,--write docs/benchmarks.md) $(ARGS)

soak: $(VENV)/.dev ## Check the memory growth of a worker over a million requests (minutes). ARGS=... adds flags.
	$(BIN)/python -m benchmarks.soak $(ARGS)

image: ## Build the container image. TARGET=cuda builds the one for GPUs; ENGINE=podman or buildah will do as well.
	$(ENGINE) build $(if $(TARGET),--target $(TARGET) -t digitserve:$(TARGET),-t digitserve) .

stubs: $(VENV)/.dev ## Regenerate the Python modules of the protocol.
	$(BIN)/python scripts/check_generated.py --write

docs: $(VENV)/.dev ## Write the generated tables of README and docs anew.
	$(BIN)/python -m cogapp -r README.md docs/models.md

# The other locks follow the first, so that one environment holds serve and dev. No index address gets into any.
# onnxruntime and onnxruntime-gpu are one package twice, of which an environment can hold one: cuda leaves the first out.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml
lock: $(VENV)/.dev ## Resolve the dependencies of pyproject.toml anew.
	$(LOCK) --group build --output-file requirements/serve.txt $(ARGS)
	$(LOCK) --extra training --group build --group dev --group bench -c requirements/serve.txt --output-file requirements/dev.txt $(ARGS)
	$(LOCK) --extra cuda --group build -c requirements/serve.txt --no-emit-package onnxruntime --output-file requirements/cuda.txt $(ARGS)

clean: ## Remove the virtual environment and all caches; models and runs stay.
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
