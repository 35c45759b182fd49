# The two commands to know: `make demo` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
PROTOS := $(shell find proto -name '*.proto' | sort)

.PHONY: help demo test test-all mutants check format proto lock bench recordings install install-test clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install:
	@deploy/install demo

install-test:
	@deploy/install test

SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

demo: install ## install what it needs, then run the main story (DISK=image.qcow2 for an image of yours)
	@$(SUDO) .venv/bin/garant demo $(if $(DISK),--disk "$(DISK)")

test: install-test check ## install what it needs, then pass all short tests
	$(PYTHON) -m pytest -m "not long" -n 2 --dist loadgroup

test-all: install-test ## the long stories too
	$(PYTHON) -m pytest -m "long" || [ $$? = 5 ]

mutants: install-test ## disable each check of the trust authority in turn: a test must turn red
	$(PYTHON) -m tests.mutants

check: install-test ## format, lint, types, import contracts, protos
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/buf lint proto

format: ## format and fix what can be fixed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

proto: install-test ## generate the Python code of the protos
	PATH="$(CURDIR)/.venv/bin:$$PATH" $(PYTHON) -m grpc_tools.protoc -I proto --python_out=proto --grpc_python_out=proto --mypy_out=proto --mypy_grpc_out=proto $(PROTOS)

lock: install-test ## write requirements.lock and tests/fuzz/requirements.lock anew
	.tools/bin/uv pip compile --quiet --python-version 3.11 --universal --generate-hashes --no-emit-index-url --no-header \
	  --all-extras --group dev pyproject.toml --output-file requirements.lock
	.tools/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --group fuzz --output-file tests/fuzz/requirements.lock

recordings: ## boot OVMF and record what it measures, anew
	@deploy/install recordings
	$(PYTHON) deploy/recordings/record.py

bench: install-test ## measure, print the table, write bench/results.json
	$(PYTHON) -m bench

clean: ## remove what was installed into this directory
	rm -rf .venv .tools .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
