VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# 3.11 is what is tested; a name on the PATH may be a shim that does not run.
PYTHON ?= $(shell for name in python3.11 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

STEP := @printf '\n==> %s\n'

.PHONY: help demo test soak check clean

help:
	@echo 'make demo    cut sample photos up, verify, import, export, compare, measure them, and read them in every mode'
	@echo 'make test    run all tests'
	@echo 'make soak    the tests that repeat something, as often as RELIABILITY.md says: many hours; PART=1/12 runs a part'
	@echo 'make check   lint, format and types'
	@echo 'make clean   remove everything that make has made'
	@echo 'Each sets up $(VENV) first where that is missing; PYTHON=... chooses the Python to use (3.11 or later).'

$(INSTALLED): pyproject.toml constraints.txt $(wildcard dlas_store/_native/*.[ch] converters/*/*.c)
	$(STEP) 'Install into $(VENV) (some minutes the first time: PyTorch is large)'
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or later is needed: none of python3.11 and python3 is one.' \
		'Install it, or run: make PYTHON=/path/to/python' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[demo,test,check]'
	@touch $@

MODES := single_image multi_frame paired_frame imagefolder stylegan2 multiscale fullimage torch_dataset combined \
	pixels
CUT := --crop-size 256 --step 128

demo: $(INSTALLED)
	@rm -rf demo
	$(STEP) '1. Write sample photos'
	$(BIN)/python examples/sample_photos.py demo/originals
	$(STEP) '2. Cut the photos up into a store; first only say what would come of it'
	$(BIN)/dlas-store extract demo/originals/photos demo/photos.lmdb $(CUT) --dry-run
	$(BIN)/dlas-store extract demo/originals/photos demo/photos.lmdb $(CUT)
	$(BIN)/dlas-store info demo/photos.lmdb
	$(STEP) '3. Cut them up into a chunked folder, as DL-Art-School reads it: every value of the store is the same'
	$(BIN)/dlas-store extract demo/originals/photos demo/photos $(CUT)
	$(BIN)/dlas-store verify demo/photos.lmdb --against demo/photos
	$(STEP) '4. Import the folder into a store, and export that: the same folder comes back, byte for byte'
	$(BIN)/dlas-store import demo/photos demo/imported.lmdb
	$(BIN)/dlas-store export demo/imported.lmdb demo/exported
	diff -r demo/photos demo/exported && echo 'no difference'
	$(STEP) '5. Read batches through a DL-Art-School config'
	$(BIN)/dlas-store read examples/train.yml
	$(STEP) '6. Measure the folder against the store'
	$(BIN)/python -m benchmarks read --folder demo/photos --store demo/photos.lmdb --patches 2000 --rounds 3
	$(STEP) '7. Make data for the other modes: clips, a stereo pair, whole pictures, labelled pictures'
	$(BIN)/dlas-store extract demo/originals/video demo/video.lmdb $(CUT)
	$(BIN)/dlas-store extract demo/originals/stereo demo/stereo.lmdb $(CUT) --vertical-split
	$(BIN)/dlas-store import demo/originals/photos demo/pictures.lmdb
	$(BIN)/dlas-store import torch:imagefolder --root demo/originals/classes demo/classes.lmdb
	$(STEP) '8. Read a batch in every mode'
	@for mode in $(MODES); do \
		printf '\n%s\n' "dlas-store read examples/$$mode.yml --batches 1"; \
		$(BIN)/dlas-store read examples/$$mode.yml --batches 1 || exit 1; done
	$(STEP) 'Now train on it for a minute: $(BIN)/python examples/train_sr.py'

# Those that take longest begin, so that none is alone at the end.
LONGEST := tests/converters/test_importing.py tests/benchmarks tests/reliability tests/loading/test_workers.py

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(LONGEST) tests

# Many hours. Parts can run one after another or beside each other; the fuzzer runs with the first.
PART := 1/1
FUZZ_SECONDS := 3600

soak: $(INSTALLED)
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[soak]'
	$(BIN)/python -c 'import atheris'
	$(BIN)/python -m pytest --soak --soak-part $(PART)
	$(if $(filter 1/%,$(PART)),$(BIN)/python -m tests.reliability.support.fuzz_centers $(FUZZ_SECONDS) build/fuzz)

# mypy sees the converters under the name that they are installed by, dlas_store.converters; not in an editable checkout.
check: $(INSTALLED)
	@rm -rf build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PIP) install --no-deps --no-build-isolation --target build/typecheck .
	$(BIN)/mypy build/typecheck/dlas_store benchmarks examples

clean:
	rm -rf $(VENV) build dist demo *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache dlas_store/_native/*.so converters/extraction/*.so
