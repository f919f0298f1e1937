# Two commands do everything: `make demo` trains, exports, serves and asks; `make test` runs the tests.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint format proto rules clean

demo: .venv/demo.installed
	$(BIN)/stn demo

test: .venv/dev.installed
	$(BIN)/pytest

lint: .venv/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The Python of the typed API and of ONNX's graph, from their .proto.
proto: .venv/dev.installed
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. \
		stn_serve/proto/image_prediction.proto
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. stn_serve/proto/onnx_graph.proto

# Prometheus' rules for its operator.
rules: .venv/dev.installed
	$(BIN)/python deploy/kubernetes/monitoring/prometheus_rule.py

# What serves and what is developed are installed apart, each in one command, so that the pins hold together.
.venv/demo.installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(PIP) --editable '.[export]'
	touch $@

.venv/dev.installed: pyproject.toml constraints.txt | .venv/bin/pip
	$(PIP) --editable '.[dev]'
	touch $@ .venv/demo.installed

.venv/bin/pip:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
