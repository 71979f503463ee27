# Builds .venv when it is missing or out of date; needs python3 (3.11 or newer) with venv, and make.

PYTHON ?= python3
WORKERS ?= auto
BITS ?= 4.5

BIN := .venv/bin
READY := .venv/.ready
MODEL := examples/books-llama
DEMO := runs/demo
NATIVE := hatch_build.py $(wildcard src/nwc/kernels/native/*.[ch])

.PHONY: setup demo test check docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "python 3.11 or newer is needed, got $$($(PYTHON) --version); set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

$(MODEL)/model.safetensors: $(MODEL).tar.xz | $(READY)
	$(BIN)/python -m tarfile -e $< examples
	@touch $@

# Compress the bundled model, check the file, and compare the model with the original.
demo: $(READY) $(MODEL)/model.safetensors
	$(BIN)/nwc compress $(MODEL) --output $(DEMO) --bits $(BITS) \
	  --calibration examples/books-calibration.txt --recovery-steps 32 --overwrite
	$(BIN)/nwc verify $(DEMO)
	$(BIN)/nwc eval $(DEMO) --reference $(MODEL) --text examples/books-heldout.txt --context 256
	@du -sk $(MODEL) $(DEMO) | awk '{ printf "%8d kB  %s\n", $$1, $$2 }'
	@echo
	@echo 'Next: what happened           open $(DEMO)-report.html in a browser'
	@echo '      where the bits go       $(BIN)/nwc inspect $(DEMO)'
	@echo '      fewer of them           make demo BITS=3'
	@echo '      your own model          $(BIN)/nwc compress MODEL --output OUT --calibration TEXT'
	@echo '      from Python             nwc.load_model("$(DEMO)")'

test: $(READY)
	$(BIN)/pytest -n $(WORKERS) -q

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The command-line reference and the test vectors of the bitstream; tests check that they are current.
docs: $(READY)
	$(BIN)/python tools/make_cli_reference.py

clean:
	rm -rf .venv runs build dist $(MODEL) src/nwc/kernels/native/libnwc.*
