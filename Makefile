# Two commands that need nothing installed but Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
BIN = $(VENV)/bin
DEMO = workdir/demo

.PHONY: demo test benchmarks clean

$(VENV)/.ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r requirements.txt
	touch $@

# Train a small class-conditional U-ViT on drawn lesions, evaluate it, sample it, write the page.
demo: $(VENV)/.ready
	$(BIN)/python train.py --config=configs/phantom32_uvit_label.py --workdir=$(DEMO)
	$(BIN)/python eval.py --config=configs/phantom32_uvit_label.py --workdir=$(DEMO)
	$(BIN)/python sample.py --config=configs/phantom32_uvit_label.py --workdir=$(DEMO) --label=all
	$(BIN)/python scripts/make_report.py --workdir=$(DEMO)

# One thread per worker: two OpenMP pools on two cores are slower than one thread each.
test: $(VENV)/.ready
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q tests

benchmarks: $(VENV)/.ready
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(DEMO) .pytest_cache
