# Everything runs in an environment of its own: VENV= chooses where it lies.
VENV   ?= .venv
PYTHON ?= python3.11
# What the benchmarks train on: scikit-image's photographs, or a Parquet file of images.
DATA   ?= photos

PY := $(VENV)/bin/python
READY := $(VENV)/.huvr-ready

.PHONY: demo test lint bench bench-gpu soak test-slurm clean

demo: $(READY)
	rm -rf runs/demo
	$(PY) -m huvr fit --config demo.yaml
	$(PY) -m huvr reconstruct photos --encoder runs/demo --out runs/demo/pictures
	$(PY) benchmarks/reconstruction.py --encoder runs/demo --out runs/demo

test: lint
	$(PY) -m pytest -q

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(READY)
	$(PY) benchmarks/inr.py
	$(PY) benchmarks/train_step.py
	$(PY) benchmarks/modulation.py --data $(DATA)
	$(PY) benchmarks/modulation.py --data $(DATA) --optimizer muon --lr 4e-3
	$(PY) benchmarks/any_size.py --data $(DATA)
	test -d runs/demo || $(MAKE) demo
	$(PY) benchmarks/reconstruction.py --encoder runs/demo
	$(PY) benchmarks/tables.py

# What takes a GPU: a training step with and without a teacher, and the hyper-networks at the sizes of their papers.
bench-gpu: $(READY)
	$(PY) benchmarks/train_step.py --presets base large --teacher vit_large_patch16_dinov3 --precision bf16 --batch 64 --steps 20
	$(PY) benchmarks/train_step.py --presets base large --teacher vit_large_patch16_dinov3 --precision bf16 --batch 256 --steps 20 --compile
	$(PY) benchmarks/hypernets.py --data $(DATA) --sizes paper --minutes 15 --precision bf16-mixed
	$(PY) benchmarks/tables.py

# Kills a training at 20 random moments, and compares its weights with those of one that was left alone.
soak: $(READY)
	OMP_NUM_THREADS=1 $(PY) tests/soak.py --kills 20

# As root on Debian 12: installs SLURM, submits the shipped file, sees it requeued and resumed.
test-slurm: $(READY)
	$(PY) tests/slurm/run.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
