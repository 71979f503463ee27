# Builds .venv when it is missing or out of date; needs python3 (3.11 or newer) with venv, and make.

PYTHON ?= python3
WORKERS ?= auto
BITS ?= 4.5
SCALE ?= tiny

BIN := .venv/bin
READY := .venv/.ready
MODEL := examples/books-llama
DEMO := runs/demo
NATIVE := hatch_build.py $(wildcard src/nwc/kernels/native/*.[ch])

# The oldest transformers that we promise to work with, one between, and the newest, as pinned.
VERSION_TESTS := tests/integrations
VERSIONS := 5.0.0 5.9.0 $(shell sed -n 's/^transformers==//p' constraints.txt)

.PHONY: setup demo test check docs reproduce versions clean

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

# The tests that touch transformers, with several versions of it, each in an environment of its own
# under .venv-versions; everything else in them is as pinned.
versions: $(VERSIONS:%=.venv-versions/%/.ready)
	@for v in $(VERSIONS); do \
	  echo "transformers $$v"; \
	  .venv-versions/$$v/bin/python -m pytest -q $(VERSION_TESTS) || failed="$$failed $$v"; \
	done; test -z "$$failed" || { echo "failed with transformers$$failed"; exit 1; }

.venv-versions/%/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	sed '/^transformers==/d; /^huggingface_hub==/d; /^tokenizers==/d; /^typer==/d; /^click==/d' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --constraint $(@D)/constraints.txt \
	  --editable . transformers==$* accelerate pytest hypothesis
	@touch $@

# The paper's figures and tables: SCALE=tiny|small|full; small wants DATA, a folder with models and text.
reproduce: $(READY)
	$(BIN)/python experiments/runner.py --scale $(SCALE) $(if $(DATA),--data $(DATA)) \
	  $(if $(ONLY),--only $(ONLY))

# The command-line reference and the test vectors of the bitstream; tests check that they are current.
docs: $(READY)
	$(BIN)/python tools/make_cli_reference.py

clean:
	rm -rf .venv .venv-versions runs build dist $(MODEL) src/nwc/kernels/native/libnwc.*
