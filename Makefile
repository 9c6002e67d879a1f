# `make train`, `make test` and `make test-fast`, in an environment of their own:
# .venv, with the versions of requirements.lock. Flags go in ARGS:
#   make train ARGS='--game breakout --run_dir runs/breakout_1'
#   make test-fast ARGS='tests/unit -k losses'
# `make train GPU=1` brings CUDA and cuDNN along, 1.7 GB to fetch.

SHELL := /bin/bash
ENV := .venv/.stamp
GPU_ENV := .venv/.stamp-gpu
PYTHON := .venv/bin/python
# A file's tests share what they train; -n 0 in ARGS is for debuggers.
BOTH_CORES := -n 2 --dist loadfile
# What starts processes waits for them much of the time: twice as many as cores. The
# files with the slowest tests come first, which tests/conftest.py sees to.
WAITING := -n 4 --dist loadfile --no-loadscope-reorder
# Actors are nicer by 10 than the rest. From 15 on they cannot be by more than 4,
# so that a run of one test is not starved by those of the others.
NICE := nice -n 15
IS_310 := -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 10))'
# Or each process compiles all that it imports, which takes 8 seconds of a core.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train test test-fast board docs

# exec: signals go to the program itself, with no shell between.
train: $(ENV) $(if $(GPU),$(GPU_ENV))
	@exec $(PYTHON) -m launch.train --game pong $(ARGS)

# TensorBoard on all runs below runs/: make board ARGS='--logdir /tmp/x'
board: $(ENV)
	@exec $(PYTHON) -m tensorboard.main --logdir runs --host localhost $(ARGS)

test: $(ENV)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(NICE) $(PYTHON) -m pytest $(WAITING) $(ARGS)

# Without the tests that are marked slow: those that start processes or train.
test-fast: $(ENV)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pytest $(BOTH_CORES) -m 'not slow' $(ARGS)

# Modules are compiled when they are first imported, and kept: most never are.
# python3.10 may be a shim of pyenv's that fails, so each candidate is tried.
$(ENV): pyproject.toml requirements.lock programs/runtime/doors.c programs/nodes/watchdog.c
	@if ! { $(PYTHON) $(IS_310) && $(PYTHON) -m pip --version; } &>/dev/null; then \
	  for python in python3.10 \
	      "$$(pyenv prefix 2>/dev/null)/bin/python" \
	      "$$(pyenv root 2>/dev/null)"/versions/3.10*/bin/python \
	      "$$(uv python find --system 3.10 2>/dev/null)" ''; do \
	    "$$python" $(IS_310) &>/dev/null && break; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo 'error: no Python 3.10 found; install it, say by "pyenv install 3.10",' \
	        '"uv python install 3.10" or "apt install python3.10-venv libpython3.10".' \
	        >&2; \
	    exit 1; \
	  fi; \
	  "$$python" -m venv --clear .venv; \
	fi
	$(PYTHON) -m pip install --no-compile -r requirements.lock
	$(PYTHON) -m pip install --no-deps --no-build-isolation -e .
	@$(PYTHON) -c 'import courier' &>/dev/null || { \
	  echo 'error: this Python cannot load Courier, which needs libpython3.10.so.1.0:' \
	      '"apt install libpython3.10", or take a Python built with --enable-shared,' \
	      'such as those of pyenv; then remove .venv.' >&2; \
	  exit 1; \
	}
	@touch $@

$(GPU_ENV): $(ENV)
	$(PYTHON) -m pip install --no-build-isolation -e '.[gpu]'
	@touch $@

# The documents as a site, in build/site; a warning is an error.
docs: $(ENV)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet
