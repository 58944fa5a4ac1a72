# Two commands matter: `make book` and `make test`. Each sets up what it needs first.

PYTHON ?= python3
# Notebooks executed, and tests run, side by side.
WORKERS ?= 2
PORT ?= 8000
# Of `make benchmark`: tiny, small or full.
SIZE ?= small

BIN := .venv/bin

# One torch thread a process: with the cores shared between processes, more are slower (up to 60x).
export OMP_NUM_THREADS := 1
# Asked of debugpy by every kernel that starts, and nothing but noise here.
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.DEFAULT_GOAL := help
.PHONY: help env book serve slides assignments notebooks queue benchmark check test thorough elsewhere families colab links hooks owner pins lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

env:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "dropreg needs Python 3.11 or newer as '$(PYTHON)'; found: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Install one and name it: make PYTHON=python3.12 book" >&2; exit 1; }
	@$(PYTHON) tools/environment.py

book: env ## execute what has changed, and render the book to _build/html
	@$(BIN)/python -m tools.build_book build --workers $(WORKERS)

serve: book ## build the book and serve it on this machine
	@echo "==> http://localhost:$(PORT)/ (stop with Ctrl-C)"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

slides: env ## make the slides of three lectures, for _build/slides
	@$(BIN)/python -m tools.build_slides

assignments: env ## make each assignment for students and for you, for assignments/ and _build/assignments
	@$(BIN)/python -m assignments.grader build

notebooks: env ## execute what has changed (or ONLY=book/…ipynb) and store the outputs, to commit
	@$(BIN)/python -m tools.build_book notebooks $(ONLY) --workers $(WORKERS)

queue: env ## work off the ledger's runs on one core, from a clone of the last commit (takes DROPREG_DATA)
	@rm -rf _build/queue && git clone -q . _build/queue
	@cd _build/queue && DROPREG_DATA="$(abspath $(DROPREG_DATA))" nice -n 5 ../../$(BIN)/python -m dropreg \
	  run --queue evidence --device cpu --results "$(CURDIR)/results" --work "$(CURDIR)/runs"

benchmark: env ## time and memory of every method, recorded in results/speed (SIZE=full: the paper's models)
	@$(BIN)/python -m benchmarks --size $(SIZE)

hooks: env ## have git check and mend what you commit, before each commit
	@git config core.hooksPath .githooks

owner: env ## once, to publish: your NAME on GitHub in every address of the repository
	@$(BIN)/python -m tools.owner $(NAME)
	@$(BIN)/python -m assignments.grader build

pins: ## make requirements.txt again, after a change of what pyproject.toml asks for
	@$(BIN)/python -m tools.pins

lint: env ## ruff (docstrings and formatting included) and mypy
	@$(BIN)/python -m tools.run_tests lint

check: env ## what takes no two minutes: style, types, most tests of the library
	@$(BIN)/python -m tools.run_tests check --workers $(WORKERS)

test: env ## everything that is tested, in an hour at most (ONLY="lint tests": some parts)
	@$(BIN)/python -m tools.run_tests --workers $(WORKERS) $(ONLY)

thorough: env ## what takes too long for `make test`: all cases of a kind of which it tries some
	@$(BIN)/python -m tools.run_tests thorough --workers $(WORKERS)

elsewhere: env ## execute the notebooks as on other processors, with two threads and with other seeds
	@$(BIN)/python -m tools.elsewhere --workers $(WORKERS)

families: env ## try the library on models of transformers, timm, …, for book/reference/families.md
	@$(BIN)/python -m tools.families $(ONLY)

colab: env ## run every notebook as Colab does: alone, the package installed by its first cell
	@DROPREG_COLAB=all $(BIN)/pytest tests/colab

links: env ## ask every address outside the book whether it still answers
	@$(BIN)/python -m tools.build_book links

clean: ## remove what was built (the environment stays)
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
