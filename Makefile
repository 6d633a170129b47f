# Everything a fresh machine needs is in here: each target sets up .venv first.
PYTHON ?= python3.11
VENV := .venv
# glibc gives big buffers back to the kernel and faults them in again in every step: a third of a tiny model's
# step on a CPU. These settings keep them, in huge pages. (One arena for all threads would keep more, but the
# compiler's threads wait for each other there, and what they leave in pieces slows the steps down.)
MALLOC := GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000
PY := JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 $(MALLOC) $(VENV)/bin/python
STAMP := $(VENV)/.installed
# A test worker takes up to 4 GiB. A file stays with one worker: its tests share models and compiled programs.
JOBS ?= $(shell n=$$(nproc); [ $$n -lt 4 ] && echo $$n || echo 4)
# What the demo has to reach on scenes that training never drew; for "both" chance is at 0.03 to 0.05.
REACHED := exact_match=0.8,det/box/AP50=0.6,det/mask/AP50=0.5,grd/refer/box/P@0.5=0.7,pose/keypoints/AP50=0.5
REACHED := $(REACHED),t2i/agreement/both=0.2,edit/edits/ratio<=0.7

.PHONY: demo test test-slow test-survival test-soak test-full lint format golden clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(STAMP): setup.py
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -e '.[dev,tpu]'
	touch $@

# The second stage compiles its mixed step while the first one trains, then waits for its weights. Evaluation
# finds the programs that training compiled.
demo: export JAX_COMPILATION_CACHE_DIR := runs/compiled
demo: $(STAMP)  ## train a tiny model for all tasks on synthetic scenes, evaluate, write runs/demo/report.html
	nice env $(PY) -m launch.train --config configs/demo.py --workdir runs/demo --wait & \
	trap "kill $$! 2>/dev/null" EXIT INT TERM; \
	$(PY) -m launch.train --config configs/talk.py --workdir runs/talk && wait $$!
	$(PY) -m launch.evaluate --config configs/demo.py --workdir runs/demo --require '$(REACHED)'

test: $(STAMP)  ## the whole suite: no network, no accelerator
	$(PY) -m pytest -n $(JOBS) --dist loadfile -m 'not slow and not survival and not soak' tests

test-slow: $(STAMP)  ## what the suite leaves out
	$(PY) -m pytest -m slow tests

test-survival: $(STAMP)  ## end runs of 2 and 4 processes in every way we know, and resume them
	$(PY) -m pytest -m survival tests/distributed

test-soak: $(STAMP)  ## 2,000 steps of 2 processes with ten random kills: about ten minutes
	$(PY) -m pytest -m soak tests/distributed

test-full: $(STAMP)  ## the released 7B in and out at full size: 45 GB of disk, 6 GiB of memory
	JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 $(VENV)/bin/python -m tests.full_size --folder runs/full_size

lint: $(STAMP)  ## ruff and mypy
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

format: $(STAMP)  ## rewrite the sources in the house style
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

golden: $(STAMP)  ## rewrite the golden text files; review them in the diff
	$(PY) -m tests.golden.update

clean:  ## remove the environment and all runs
	rm -rf $(VENV) runs
