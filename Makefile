# `make` alone lists the targets. Everything runs inside .venv, which is made on the first use.
PYTHON ?= python3
VENV ?= .venv
# Extra arguments for pip: PIP_ARGS="--extra-index-url <the CPU-only index named in PyTorch's install guide>" fetches a small torch.
PIP_ARGS ?=
# What `make explore` shows: runs, concepts or zoos; the zoo and your own concepts when empty.
CONCEPTS ?=
# Arguments for the script of `demo`, `bench`, `site`, `report`, `rebuild` or `pretrain`, such as ARGS="--help".
ARGS ?=
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
PY := $(VENV)/bin/python
METADATA := settings.ini setup.py pyproject.toml constraints.txt
# Where `make lowest` installs, and the Python it uses: the oldest that a wheel of torch is at hand for.
LOWEST ?= .venv-lowest

EXTRAS_run := [explore,lab,tensorboard]
EXTRAS_dev := [dev,all]
EXTRAS_explore := [explore,lab]
EXTRAS_docs := [docs]
EXTRAS_site := [explore,lab,site]

.DEFAULT_GOAL := help
.PHONY: help demo explore test check lowest lab bench bench-quick report pretrain rebuild stale readme sync docs site pin release clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-run ## learn a concept from one clip and edit it; writes out/demo/
	$(PY) scripts/demo.py $(ARGS)

explore: $(VENV)/.stamp-explore ## open the page of faces, maps and sliders: the shipped zoo and your own concepts; CONCEPTS="out/demo" for some
	$(VENV)/bin/sas-nb explore $(CONCEPTS) $(ARGS)

test: check ## run every notebook and every test, and try the wheel in a clean environment
	OMP_NUM_THREADS=1 $(VENV)/bin/nbdev-test --n-workers $(JOBS) --timing
	$(PY) -m pytest -n $(JOBS) --dist loadfile

check: $(VENV)/.stamp-dev ## the quick checks: lint, metadata, clean notebooks, notebooks and library in step
	$(PY) -m ruff check --quiet
	$(PY) -m pytest -q tests/test_project.py tests/test_notebooks.py

lowest: $(VENV)/.stamp-dev ## the quick tests with the lowest versions that settings.ini allows, in .venv-lowest
	$(PY) -m pip install --disable-pip-version-check --quiet 'uv>=0.5'
	$(PY) scripts/lowest.py $(LOWEST) $(ARGS)

lab: $(VENV)/.stamp-dev ## open the notebooks in JupyterLab
	$(VENV)/bin/jupyter lab --notebook-dir nbs

bench: $(VENV)/.stamp-run ## measure speed: against the straightforward loop, against the machine, in minutes
	$(PY) scripts/bench.py $(ARGS)

bench-quick: $(VENV)/.stamp-run ## compare three methods on three held-out people; a quarter of an hour
	$(PY) scripts/table.py --quick $(ARGS)

report: $(VENV)/.stamp-run ## the tiny model's report card, by oracles: 500 prompts; writes out/report/
	$(PY) scripts/report.py $(ARGS)

pretrain: $(VENV)/.stamp-run ## train the tiny model: autoencoder, DiT, oracles, report card
	$(PY) scripts/pretrain.py $(ARGS)

rebuild: $(VENV)/.stamp-dev ## make anew, in order, what was made with another tiny model: days, resumable; ARGS="--dry-run" only says what
	nice -n 5 $(PY) scripts/rebuild.py $(ARGS)

stale: $(VENV)/.stamp-dev ## list what was made with another tiny model than the one in data/tiny
	@$(PY) scripts/rebuild.py --stale

readme: $(VENV)/.stamp-dev ## write README.md from nbs/index.ipynb
	$(PY) scripts/readme.py

sync: $(VENV)/.stamp-dev ## after editing a notebook: write sas_nb/, clean the notebooks, write README.md
	$(VENV)/bin/nbdev-export
	$(PY) scripts/strip.py
	$(VENV)/bin/nbdev-clean
	$(PY) scripts/readme.py

docs: $(VENV)/.stamp-docs ## build the site from the notebooks, as they are stored, into site/, with the page of `make site` if there is one
	$(PY) scripts/docs.py
	$(VENV)/bin/mkdocs build --strict --quiet

site: $(VENV)/.stamp-site ## write the explorer as a page for any browser, without a kernel, into site/explore/; resumable
	nice -n 5 $(PY) scripts/static_page.py $(ARGS)

release: $(VENV)/.stamp-dev ## check version, changelog and tag, build into dist/, check, tag; uploads only where TWINE_PASSWORD is set
	$(PY) -m pip install --disable-pip-version-check --quiet 'twine>=6'
	$(PY) scripts/release.py $(ARGS)

pin: $(VENV)/.stamp-dev ## write constraints.txt from what is installed in .venv
	$(PY) scripts/pin.py

clean: ## remove build products and caches; keeps .venv and out/
	rm -rf build dist _proc site *.egg-info .pytest_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

$(VENV)/.stamp-%: $(METADATA) | $(VENV)/bin/pip
	$(PY) -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.$(EXTRAS_$*)'
	@$(PY) -c 'import importlib.util as u; u.find_spec("skia") and __import__("skia")' || { echo "skia-python, which draws the clips, needs system libraries: apt install libgl1 libegl1 libexpat1"; exit 1; }
	@touch $@

$(VENV)/bin/pip:
	@command -v $(PYTHON) >/dev/null || { echo "There is no '$(PYTHON)' here: install Python 3.10 or newer, or name yours with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "sas_nb needs Python 3.10 or newer and '$(PYTHON)' is $$($(PYTHON) --version 2>&1): name a newer one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' cannot make virtual environments: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
