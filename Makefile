PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart
BENCH ?= runs/bench

.PHONY: quickstart test test-slow test-peer bench lint clean

quickstart: $(VENV)/.train
	$(BIN)/python train.py --config=configs/mae.py:dataset=shapes,mask=dpp --workdir=$(WORKDIR)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

test-peer: $(VENV)/.peer
	$(BIN)/python -m pytest -m peer

# On a GPU: an environment of your own, and `python benchmarks/all.py FOLDER`.
bench: $(VENV)/.peer
	$(BIN)/python benchmarks/all.py $(BENCH)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.train: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	touch $@

# PyTorch without CUDA, gigabytes smaller; pip has to know where its CPU builds are.
$(VENV)/.peer: $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0+cpu
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[peer]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
