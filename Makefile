# Everything runs in an environment of its own: VENV= chooses where it lies.
VENV   ?= .venv
PYTHON ?= python3.11
PACK   ?= photos

PY := $(VENV)/bin/python
READY := $(VENV)/.huvr-ready

.PHONY: demo test lint bench clean

demo: $(READY)
	$(PY) -m huvr fit --config demo.yaml
	$(PY) benchmarks/demo.py --run runs/demo

test: lint
	$(PY) -m pytest -q

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(READY)
	$(PY) benchmarks/inr.py
	$(PY) benchmarks/train_step.py
	$(PY) benchmarks/reconstruction.py --data $(PACK)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
