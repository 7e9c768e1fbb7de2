# The commands of users, operators, developers and CI. Needs only Python 3.11 to 3.13 with venv, make and a package index.
PYTHON ?= python3
VENV   ?= .venv
ENGINE ?= docker
BIN    := $(VENV)/bin
# Pages with generated tables.
GENERATED := docs/models.md $(addprefix docs/reference/,settings.md metrics.md commands.md messages.md bundle.md http.md)
COG = $(BIN)/python -m cogapp -I scripts

.DEFAULT_GOAL := help
.PHONY: help serve test test-service test-versions testimage fuzz lint format train bench soak chaos image stubs lock docs site screenshots sbom dist clean

help: ## List the targets.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "digitserve needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Select another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# First the locked requirements, checked by hash; then the project itself, which has no hash.
define install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$(1).txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(VENV)/.$(1)
endef

$(VENV)/.serve: requirements/serve.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing what serving needs into $(VENV) ..."
	$(call install,serve)

$(VENV)/.test: requirements/test.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing what the tests of the service need into $(VENV) (without TensorFlow) ..."
	$(call install,test)
	@touch $(VENV)/.serve

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing what training and all tests need into $(VENV) (with TensorFlow: 2 GB, about a minute) ..."
	$(call install,dev)
	@touch $(VENV)/.serve $(VENV)/.test

$(VENV)/.fuzz: requirements/fuzz.txt $(VENV)/.dev
	$(call install,fuzz)

serve: $(VENV)/.serve ## Serve the newest version of models/digits: gRPC on port 50051, HTTP on 8080. ARGS=... adds flags.
	@exec $(BIN)/digitserve serve $(ARGS)

# One process per core, at most four: each that runs tests of training holds TensorFlow. The tests of a file run in one process,
# because they share fixtures. With --pdb, pytest-xdist starts no processes.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile
test: $(VENV)/.dev ## Run all tests except those of the image. ARGS=... is passed to pytest (folders, -k, --numprocesses 0 for one process, ...).
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

WITHOUT_TENSORFLOW := tests/service tests/client tests/bench tests/deploy tests/web tests/fuzz
test-service: $(VENV)/.test ## Run the tests of service, client, bench, deployment and fuzzing, without TensorFlow.
	$(BIN)/python -m pytest $(PARALLEL) $(WITHOUT_TENSORFLOW) $(ARGS)

# LOCK=dev TESTS=tests/training: the tests of training. CI runs the tests of the client, the package and a part of the service.
VERSIONS ?= 3.12 3.13
LOCK     ?= test
TESTS    ?= $(WITHOUT_TENSORFLOW)
test-versions: $(VENV)/.dev ## Run the tests of service, client, ... on other versions of Python: VERSIONS="3.12 3.13" TESTS=...
	@set -e; for version in $(VERSIONS); do \
	  python=$$($(BIN)/python scripts/find_python.py $$version); folder=$(abspath $(VENV))-$$version; \
	  echo "Testing on $$python ..."; \
	  $(BIN)/uv venv --quiet --clear --seed --no-project --python $$python $$folder; \
	  $(BIN)/uv pip sync --quiet --require-hashes --python $$folder requirements/$(LOCK).txt; \
	  $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $$folder -e .; \
	  PATH=$$folder/bin:$$PATH $$folder/bin/python -m pytest $(PARALLEL) $(TESTS) $(ARGS); \
	done

testimage: $(VENV)/.dev ## Build the image on a base of Debian packages and test it (needs root, podman, buildah, runc, mmdebstrap).
	$(BIN)/python -m pytest tests/image --timeout 900 $(ARGS)

fuzz: $(VENV)/.fuzz ## Fuzz all hostile input with coverage guidance (10 minutes per target; ARGS="images --seconds 3600" for one).
	PYTHONPATH=tests $(BIN)/python tests/fuzz/guided.py $(ARGS)

lint: $(VENV)/.dev ## Check style, types, import layers, the proto, generated stubs, tables, dashboard and rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/check_generated.py
	$(COG) --check --diff $(GENERATED)
	$(BIN)/python scripts/generate_monitoring.py

format: $(VENV)/.dev ## Apply the automatic fixes of ruff and format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

train: $(VENV)/.dev ## Train the default network on MNIST, evaluate it, and export it as the next version in models/.
	$(BIN)/digitserve-train train --run-dir runs/default
	$(BIN)/digitserve-train evaluate runs/default
	$(BIN)/digitserve-train export runs/default

bench: $(VENV)/.dev ## Measure against targets and a grpc.aio service, and write docs/benchmarks.md; ARGS="--against COMMIT" compares two commits.
	$(BIN)/python -m benchmarks.compare $(if $(findstring --against,$(ARGS)),,--write docs/benchmarks.md) $(ARGS)

soak: $(VENV)/.dev ## Check memory, descriptors, threads and counters of a worker over a million requests (minutes). ARGS=... adds flags.
	$(BIN)/python -m benchmarks.soak $(ARGS)

chaos: $(VENV)/.dev ## Run the service with faults and hostile clients, and check every outcome (minutes; ARGS="--seconds 3600 --write").
	PYTHONPATH=tests $(BIN)/python tests/fuzz/chaos.py $(ARGS)

# Podman and buildah keep the health check only in the format of docker.
TAG ?= digitserve$(if $(TARGET),:$(TARGET))
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION = $(shell git describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null || echo unknown)
image: export BUILDAH_FORMAT = docker
image: ## Build the container image. TARGET=cuda: for GPUs. ENGINE=podman or buildah: instead of docker. ARGS=... adds flags.
	$(ENGINE) build $(if $(TARGET),--target $(TARGET) )-t $(TAG) --label org.opencontainers.image.version=$(VERSION) \
	  --label org.opencontainers.image.revision=$(REVISION) $(ARGS) .

stubs: $(VENV)/.dev ## Regenerate the Python modules of the protocol.
	$(BIN)/python scripts/check_generated.py --write

# In an environment of its own, which needs neither the service nor TensorFlow.
$(VENV)-site/.site: requirements/site.txt
	$(MAKE) --no-print-directory VENV=$(VENV)-site $(VENV)-site/bin/python
	$(VENV)-site/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

site: $(VENV)-site/.site ## Build the documentation site in site/, which works without a server.
	$(VENV)-site/bin/python scripts/build_site.py $(ARGS)

screenshots: $(VENV)/.dev ## Take the screenshots of the page at / in docs/images again (needs Debian's chromium; a minute).
	PYTHONPATH=tests $(BIN)/python scripts/take_screenshots.py

docs: $(VENV)/.dev ## Update the generated pages and tables in docs/, the dashboard and the PrometheusRule in deploy/.
	$(COG) -r $(GENERATED)
	$(BIN)/python scripts/generate_monitoring.py --write

sbom: $(VENV)/.dev ## Write the bills of materials of the service (CycloneDX) to dist/.
	$(BIN)/python scripts/write_sbom.py dist

dist: $(VENV)/.dev ## Build wheel and sdist, and write the bills of materials, in dist/.
	$(BIN)/python -m hatchling build --clean --directory dist
	$(BIN)/python scripts/write_sbom.py dist

# All locks agree with serve.txt, so one environment can hold serve, test and dev. No lock contains an index address.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml
lock: $(VENV)/.dev ## Resolve the dependencies of pyproject.toml and write requirements/*.txt.
	$(COMPILE) --extra serve --extra bench --group build --output-file requirements/serve.txt $(ARGS)
	$(COMPILE) --extra training --extra bench --group build --group dev --group bench -c requirements/serve.txt --output-file requirements/dev.txt $(ARGS)
	$(COMPILE) --extra serve --extra bench --extra plot --group build --group test --group bench -c requirements/dev.txt --output-file requirements/test.txt $(ARGS)
	$(subst pyproject.toml,,$(COMPILE)) --group stubs --output-file requirements/stubs.txt $(ARGS)
	$(subst pyproject.toml,,$(COMPILE)) --group site --output-file requirements/site.txt $(ARGS)
	$(COMPILE) --resolution lowest-direct --output-file requirements/oldest.txt $(ARGS)
	$(COMPILE) --resolution lowest-direct --extra serve --output-file requirements/oldest-serve.txt $(ARGS)
	$(COMPILE) --output-file requirements/newest.txt $(ARGS)
	$(COMPILE) --group tritonclient --output-file requirements/tritonclient.txt $(ARGS)
	$(subst pyproject.toml,,$(COMPILE)) --group schemathesis --output-file requirements/schemathesis.txt $(ARGS)
	$(subst pyproject.toml,,$(COMPILE)) --group fuzz -c requirements/dev.txt --output-file requirements/fuzz.txt $(ARGS)
	$(COMPILE) --extra cuda --extra bench --group build -c requirements/serve.txt --output-file requirements/cuda.txt $(ARGS)

clean: ## Remove the virtual environment and caches; keep models/ and runs/.
	rm -rf $(VENV) $(VENV)-site site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
