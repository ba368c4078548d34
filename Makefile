VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# The tests run on Python 3.11. A name on the PATH may be a shim that does not run, so try each.
PYTHON ?= $(shell for name in python3.11 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)

STEP := @printf '\n==> %s\n'

.PHONY: help demo test soak check clean

help:
	@echo 'make demo    crop sample photos into stores, verify, import, export and measure them, and read them in every mode'
	@echo 'make test    run all tests'
	@echo 'make soak    run repeating tests as often as RELIABILITY.md says: many hours; PART=1/12 runs one part of twelve'
	@echo 'make check   check lint, format and types'
	@echo 'make clean   remove all files that make has written'
	@echo 'Each command but clean first sets up $(VENV) if it is missing; PYTHON=... names the Python, 3.11 or later.'

$(INSTALLED): pyproject.toml constraints.txt $(wildcard dlas_store/_native/*.[ch] converters/*/*.c)
	$(STEP) 'Install into $(VENV) (some minutes the first time: PyTorch is large)'
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or later is needed: neither python3.11 nor python3 is one.' \
		'Install it, or run: make PYTHON=/path/to/python' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[demo,test,check]'
	@touch $@

MODES := single_image multi_frame paired_frame imagefolder stylegan2 multiscale fullimage torch_dataset combined \
	pixels
EXTRACT_OPTIONS := --crop-size 256 --step 128

demo: $(INSTALLED)
	@rm -rf demo
	$(STEP) '1. Write sample photos'
	$(BIN)/python examples/sample_photos.py demo/originals
	$(STEP) '2. Crop the photos into a store, after a dry run that only estimates the result'
	$(BIN)/dlas-store extract demo/originals/photos demo/photos.lmdb $(EXTRACT_OPTIONS) --dry-run
	$(BIN)/dlas-store extract demo/originals/photos demo/photos.lmdb $(EXTRACT_OPTIONS)
	$(BIN)/dlas-store info demo/photos.lmdb
	$(STEP) '3. Crop the photos into a chunked folder, as DL-Art-School reads it: the store has the same values'
	$(BIN)/dlas-store extract demo/originals/photos demo/photos $(EXTRACT_OPTIONS)
	$(BIN)/dlas-store verify demo/photos.lmdb --against demo/photos
	$(STEP) '4. Import the folder into a store, and export the store: the exported folder is the same, byte for byte'
	$(BIN)/dlas-store import demo/photos demo/imported.lmdb
	$(BIN)/dlas-store export demo/imported.lmdb demo/exported
	diff -r demo/photos demo/exported && echo 'no difference'
	$(STEP) '5. Read batches through a DL-Art-School config'
	$(BIN)/dlas-store read examples/train.yml
	$(STEP) '6. Measure the folder against the store'
	$(BIN)/python -m benchmarks read --folder demo/photos --store demo/photos.lmdb --patches 2000 --rounds 3
	$(STEP) '7. Write data for the other modes: clips, a stereo pair, whole pictures, labelled pictures'
	$(BIN)/dlas-store extract demo/originals/video demo/video.lmdb $(EXTRACT_OPTIONS)
	$(BIN)/dlas-store extract demo/originals/stereo demo/stereo.lmdb $(EXTRACT_OPTIONS) --vertical-split
	$(BIN)/dlas-store import demo/originals/photos demo/pictures.lmdb
	$(BIN)/dlas-store import torch:imagefolder --root demo/originals/classes demo/classes.lmdb
	$(STEP) '8. Read a batch in every mode'
	@for mode in $(MODES); do \
		printf '\n%s\n' "dlas-store read examples/$$mode.yml --batches 1"; \
		$(BIN)/dlas-store read examples/$$mode.yml --batches 1 || exit 1; done
	$(STEP) 'Next, train on the data for a minute: $(BIN)/python examples/train_sr.py'

# The longest test files start first, so that no single file runs alone at the end.
LONGEST := tests/converters/test_importing.py tests/benchmarks tests/reliability tests/loading/test_workers.py

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(LONGEST) tests

# soak takes many hours. Its parts can run one after another or side by side; part 1 includes the fuzzer.
PART := 1/1
FUZZ_SECONDS := 3600

soak: $(INSTALLED)
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[soak]'
	$(BIN)/python -c 'import atheris'
	$(BIN)/python -m pytest --soak --soak-part $(PART)
	$(if $(filter 1/%,$(PART)),$(BIN)/python -m tests.reliability.support.fuzz_centers $(FUZZ_SECONDS) build/fuzz)

# The converters are installed as dlas_store.converters. mypy does not find that name in an editable checkout, so check
# an installed copy.
check: $(INSTALLED)
	@rm -rf build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PIP) install --no-deps --no-build-isolation --target build/typecheck .
	$(BIN)/mypy build/typecheck/dlas_store benchmarks examples

clean:
	rm -rf $(VENV) build dist demo *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache dlas_store/_native/*.so converters/extraction/*.so
