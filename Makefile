# One command per need. Two virtual environments: .venv is what a user gets ('make demo'),
# .venv-dev has an editable installation with the tools. Stamp files keep repeated calls quick.
PYTHON   ?= python3
VENV     ?= .venv
DEV_VENV ?= .venv-dev
MODEL    ?= smollm2-135m
PROMPT   ?= Gravity is
RESULTS  ?= benchmarks/results
PYTEST_ARGS ?=
# A text file to measure perplexity on, for example WikiText-2 validation.
TEXT     ?=

DEV := $(DEV_VENV)/bin
NATIVE_SOURCES := CMakeLists.txt $(shell find native -type f 2>/dev/null)
PACKAGE_SOURCES := $(shell find src -name '*.py' -o -name '*.html' -o -name '*.css' -o -name '*.js' -o -name '*.svg' -o -name '*.json' 2>/dev/null)

.PHONY: help demo test test-slow bench bench-report lint docs docs-commands native clean

help: ## list the targets
	@sed -n 's/^\([a-z/.-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 18

# ---- environments ----------------------------------------------------------------------------

$(VENV)/.created $(DEV_VENV)/.created:
	$(PYTHON) -m venv $(@D)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml $(NATIVE_SOURCES) $(PACKAGE_SOURCES)
	$(VENV)/bin/pip install --quiet --config-settings=build-dir=build/user .
	@touch $@

# The build requirements go into the environment itself, so that a change of one kernel compiles one
# file: with pip's build isolation every call would see a new CMake in a new place and start over.
$(DEV_VENV)/.build-requires: $(DEV_VENV)/.created pyproject.toml
	$(DEV)/python -c 'import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"]))' > $@.txt
	$(DEV)/pip install --quiet -r $@.txt cmake ninja 'setuptools>=70.1'
	@touch $@

$(DEV_VENV)/.installed: $(DEV_VENV)/.build-requires pyproject.toml $(NATIVE_SOURCES)
	$(DEV)/pip install --quiet --no-build-isolation -e '.[dev]'
	@touch $@

# llama.cpp is compiled for this machine: the peer runs as fast as it can.
$(DEV_VENV)/.bench: $(DEV_VENV)/.installed
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(DEV)/pip install --quiet --no-build-isolation -e '.[bench]'
	@touch $@

# ---- what people type ------------------------------------------------------------------------

demo: $(VENV)/.installed ## install, pull the real model, answer a prompt, print speed and memory
	$(VENV)/bin/capax pull $(MODEL)
	$(VENV)/bin/capax run $(MODEL) -p "$(PROMPT)" -n 64 --temp 0

test: $(DEV_VENV)/.installed ## the ordinary test suite
	@mkdir -p build
	$(DEV)/python -m pytest -m "not slow" --junitxml=build/tests.xml $(PYTEST_ARGS)

test-slow: $(DEV_VENV)/.installed ## everything, with the slow tests
	@mkdir -p build
	$(DEV)/python -m pytest --junitxml=build/tests-slow.xml $(PYTEST_ARGS)

bench: $(DEV_VENV)/.bench ## measure against the peers; writes JSON, pictures and the README table
	$(DEV)/capax pull $(MODEL)
	$(DEV)/python -m benchmarks.run --model $(MODEL) --out $(RESULTS) $(if $(TEXT),--text $(TEXT))
	$(DEV)/python -m benchmarks.batch --model $(MODEL) --out $(RESULTS)
	$(DEV)/python -m benchmarks.scoring --model $(MODEL) --out $(RESULTS)
	$(DEV)/python -m benchmarks.serving --model $(MODEL) --out $(RESULTS)
	$(MAKE) bench-report

bench-report: $(DEV_VENV)/.installed ## renew pictures and tables from the measured results
	$(DEV)/python -m benchmarks.report --results $(RESULTS) --page README.md $(RESULTS)/engine.png \
	  --page docs/benchmarks.md docs/images/engine.png
	$(DEV)/python -m benchmarks.method_pages --results $(RESULTS)

lint: $(DEV_VENV)/.installed ## style, types, direction of imports, symbols of the built kernels
	$(DEV)/ruff check
	$(DEV)/ruff format --check
	$(DEV)/mypy
	$(DEV)/lint-imports --no-logo
	$(DEV)/python tools/check_symbols.py build/cp3*
	$(DEV)/python tools/cli_reference.py --check docs/cli.md

docs: $(DEV_VENV)/.installed docs-commands ## run the commands the pages show, then build the site
	$(DEV)/zensical build --strict --clean

docs-commands: $(DEV_VENV)/.installed ## run the commands the pages show and compare their output
	$(DEV)/python tools/run_docs.py README.md docs/*.md

docs/cli.md: $(DEV_VENV)/.installed $(PACKAGE_SOURCES) ## write the page of commands from the commands
	$(DEV)/python tools/cli_reference.py $@

# In-place development build: src/capax/_native*.so beside the package.
native: ## build the extension beside the package
	@cmake -S . -B build/dev -G Ninja -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/src/capax \
	  -DPython_EXECUTABLE=$$(command -v python) > build-dev.log 2>&1 || (cat build-dev.log; false)
	@rm -f build-dev.log
	@cmake --build build/dev

clean: ## remove what was built, and the environments
	rm -rf build dist site $(VENV) $(DEV_VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -f src/capax/_native*.so
	find . -name __pycache__ -prune -exec rm -rf {} +
