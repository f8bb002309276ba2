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

# VAP-Diffusion small, end to end: draw and describe lesions, pack features, train, sample by prompt, evaluate, write the page.
DEMO_CONFIG = --config=configs/phantom64_vap.py --config.features.path=$(DEMO)/features
demo: $(VENV)/.ready
	$(BIN)/python scripts/extract_feature.py $(DEMO_CONFIG)
	$(BIN)/python train_t2i_discrete.py $(DEMO_CONFIG) --workdir=$(DEMO)
	$(BIN)/python sample.py --workdir=$(DEMO) --prompt="a large red irregular lesion" --label=angioma --n_samples=16
	$(BIN)/python eval_t2i_discrete.py --workdir=$(DEMO)
	$(BIN)/python eval_t2i_discrete.py --workdir=$(DEMO) --config.sample.prompts=unseen --config.sample.n_samples=200 --config.metrics.bootstrap=5
	$(BIN)/python scripts/make_report.py --workdir=$(DEMO)

# One thread per worker: two OpenMP pools on two cores are slower than one thread each.
test: $(VENV)/.ready
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q -rs tests

benchmarks: $(VENV)/.ready
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(DEMO) .pytest_cache
