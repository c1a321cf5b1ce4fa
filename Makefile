PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TPU_VENV := .venv-tpu
NEWEST_VENV := .venv-newest
# The newest Python on this machine that is 3.12 or later, and can make environments.
NEWEST_PYTHON ?= $(shell for folder in $$(echo "$$PATH" | tr : ' ') ~/.pyenv/versions/*/bin; do \
	for python in "$$folder"/python3.1[2-9]; do \
	"$$python" -c 'import ensurepip, sys; print(sys.version_info[1], sys.executable)' 2>/dev/null; \
	done; done | sort -n | tail -n 1 | cut -d ' ' -f 2-)
WORKDIR ?= runs/quickstart
BENCH ?= runs/bench
# $(call files_of,MARKER): the files with such tests; collecting all of them takes longer than some.
files_of = $(shell grep -l "mark\.$(1)" tests/test_*.py)
ALL_CORES := -n auto --dist loadfile --no-loadscope-reorder
# $(call install,ENVIRONMENT,PACKAGES): with uv, in seconds what takes pip minutes; with pip where
# uv cannot be had or cannot reach an index that pip is configured for.
install = $(1)/bin/python -m pip install -q --disable-pip-version-check uv \
	&& $(1)/bin/uv pip install -q --python $(1)/bin/python $(2) \
	|| $(1)/bin/python -m pip install -q --disable-pip-version-check $(2)

.PHONY: quickstart docs site test test-all test-oracles test-slow test-long test-faults test-peer test-newest test-tpu test-tpu-slow speed-tpu bench lint clean

# Huge pages, where the C library is glibc: without them a small model waits for its memory.
quickstart: $(VENV)/.train
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python train.py --config=configs/mae.py:dataset=shapes,mask=dpp --workdir=$(WORKDIR)

docs: $(VENV)/.dev
	$(BIN)/python -m dppmask_jax.config_table > docs/configuration.md
	$(BIN)/python docs/draw_rooms.py
	$(MAKE) site

# A warning, as of a link to nothing, is an error.
site: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ALL_CORES)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest $(ALL_CORES) -m 'slow and not long and not faults and not tpu'

# Those of `test`, `test-oracles` and `test-slow` in one go: files share their runs, imports cost once.
test-all: $(VENV)/.dev
	$(BIN)/python -m pytest $(ALL_CORES) -m 'not long and not faults and not tpu and not gpu and not peer'

# DPPMASK_TEST_ORACLES names the folder of what the authors' code computed.
test-oracles: $(VENV)/.dev
	$(BIN)/python -m pytest $(ALL_CORES) -m oracle

test-long: $(VENV)/.dev
	$(BIN)/python -m pytest $(ALL_CORES) -m long

test-faults: $(VENV)/.dev
	$(BIN)/python -m pytest -s -m faults

test-peer: $(VENV)/.peer
	$(BIN)/python -m pytest $(ALL_CORES) -m 'peer and not long' $(call files_of,peer)

test-newest: $(NEWEST_VENV)/.newest
	@test ! -e $< || $(NEWEST_VENV)/bin/python -m pytest $(ALL_CORES) --first-cases

test-tpu: $(TPU_VENV)/.tpu
	JAX_PLATFORMS=cpu $(TPU_VENV)/bin/python -m pytest -n 2 -m 'tpu and not slow' $(call files_of,tpu)

# With all of the compiler's effort, as a run has it.
test-tpu-slow: $(TPU_VENV)/.tpu
	JAX_PLATFORMS=cpu $(TPU_VENV)/bin/python -m pytest -n 2 -m 'tpu and slow' $(call files_of,tpu)

speed-tpu: $(TPU_VENV)/.tpu
	$(TPU_VENV)/bin/python benchmarks/tpu_table.py
	$(TPU_VENV)/bin/python benchmarks/tpu_selection.py

# On a GPU: an environment of your own, and `python benchmarks/all.py FOLDER`.
bench: $(VENV)/.peer
	$(BIN)/python benchmarks/all.py $(BENCH)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/.train: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV),-e '.[train]')
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(call install,$(VENV),-e '.[dev]')
	touch $@

# PyTorch without CUDA, gigabytes smaller; pip has to know where its CPU builds are. timm asks for
# torchvision: the one of this PyTorch, or pip would take the newest and a PyTorch with CUDA for it.
# --no-compile: of PyTorch's thousands of files the tests import few.
$(VENV)/.peer: $(VENV)/.dev
	$(BIN)/python -m pip install -q --no-compile --disable-pip-version-check torch==2.13.0+cpu torchvision==0.28.0
	$(call install,$(VENV),-e '.[peer]')
	touch $@

# The newest versions in the ranges of pyproject.toml; those of jax want Python 3.12.
$(NEWEST_VENV)/.newest: pyproject.toml
	@python="$(NEWEST_PYTHON)"; if [ -z "$$python" ]; then \
		echo "no Python 3.12 or later on this machine: the newest jax was not tested"; \
	else set -ex; \
		"$$python" -m venv $(NEWEST_VENV); \
		$(call install,$(NEWEST_VENV),-U -e '.[dev]'); \
		touch $@; \
	fi

# The TPU compiler, apart: with libtpu installed, JAX looks for a TPU wherever it starts.
$(TPU_VENV)/.tpu: pyproject.toml
	$(PYTHON) -m venv $(TPU_VENV)
	$(call install,$(TPU_VENV),-e '.[dev]')
	$(call install,$(TPU_VENV),-e '.[tpu]')
	touch $@

clean:
	rm -rf $(VENV) $(TPU_VENV) $(NEWEST_VENV) build site *.egg-info .pytest_cache .ruff_cache .hypothesis
