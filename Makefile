# Two commands do everything: `make demo` shows Baton at work, `make test` tests it. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
PROCESSES ?= auto
BIN := $(VENV)/bin
PROTO_INCLUDES := -I protos -I third_party/protovalidate -I third_party/googleapis
export PYTHONPATH :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test simulate check lint types protos generate release-wire bench bench-quick bench-curves bench-readme bench-lock chaos lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

setup: $(VENV)/ready ## prepare the virtual environment from the lock file

$(VENV)/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Baton needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup ## start Baton with workers, run the example workflows and show them
	$(BIN)/python -m examples.demo

test: setup ## run the tests, three processes for two CPUs; `make test PROCESSES=0` in one
	$(BIN)/python -m pytest -n $(PROCESSES)

SEEDS ?= 1000
FIRST ?= 1
simulate: setup ## run SEEDS simulated worlds, from the seed FIRST; see docs/reliability.md
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST)

check: lint types protos ## every check but the tests

lint: setup ## style, layers and configuration files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/yamllint --strict .
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	[ ! -x $(BIN)/hadolint ] || $(BIN)/hadolint docker/Dockerfile
	$(BIN)/check-jsonschema --check-metaschema docker/chart/values.schema.json
	! $(BIN)/python -c 'import helm_python' || $(BIN)/python .ci/check-chart

types: setup ## static types
	$(BIN)/mypy

protos: setup ## proto style, compatibility, and generated code up to date
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	.ci/check-protos

generate: setup ## generate Python from the protos
	$(BIN)/python -m grpc_tools.protoc $(PROTO_INCLUDES) \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=sdk/python --grpc_python_out=sdk/python --mypy_out=quiet:sdk/python --mypy_grpc_out=quiet:sdk/python \
	  $$(cd protos && find baton -name '*.proto' | sort)
	$(BIN)/python -m grpc_tools.protoc $(PROTO_INCLUDES) \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --python_out=sdk/python --mypy_out=quiet:sdk/python \
	  buf/validate/validate.proto
	$(BIN)/python -m grpc_tools.protoc -I examples/protos -I third_party/protovalidate \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=examples/gen --grpc_python_out=examples/gen --mypy_out=quiet:examples/gen \
	  --mypy_grpc_out=quiet:examples/gen $$(cd examples/protos && find answers documents shop -name '*.proto' | sort)

bench: setup ## measure speed and memory beside disk, wire, a sketch and peers; about twenty minutes
	$(BIN)/python -m benchmarks

bench-quick: setup ## the main ratios of that without peers; under two minutes
	$(BIN)/python -m benchmarks --quick

CHAOS ?= --least 30
chaos: setup ## inject faults into whole systems under load and check what must hold; CHAOS="--seconds 60" for less
	$(BIN)/python -m tests.chaos $(CHAOS)

bench-readme: setup ## put the table of the last `make bench` into the README
	$(BIN)/python -m benchmarks.readme build/bench.json

bench-lock: setup ## resolve anew what only `make bench` needs
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --generate-hashes --no-annotate \
	  --no-header benchmarks/peers/requirements.in --output-file benchmarks/peers/requirements.lock
	cd benchmarks/peers && npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved

bench-curves: setup ## measure how cost grows with steps, events, watchers, workers, namespaces and queues; 4 GB of disk
	$(BIN)/python -m benchmarks.curves

release-wire: setup ## take the wire as it is for the one that must not break
	$(BIN)/buf build protos --exclude-source-info --output protos/released.binpb

lock: setup ## resolve the dependencies anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --generate-hashes --no-annotate \
	  --no-header --extra server --extra embedded --extra tracing --group dev pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --generate-hashes --no-annotate \
	  --no-header --extra server --constraint requirements.lock pyproject.toml --output-file docker/requirements.lock

clean: ## remove what was built
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
