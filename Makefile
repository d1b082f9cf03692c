# make test   lint, types and tests;  make demo   a rendered bag through the odometry to a report
# Both make .venv first where it is missing or older than what it is made from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
DEMO := out/demo

# Torch's threads wait for each other actively: on a small or shared machine that costs more than they bring.
export OMP_NUM_THREADS ?= 1

.PHONY: help test demo lint types unit parameters clean
.DELETE_ON_ERROR:

help:
	@echo 'make test         lint, types and tests'
	@echo 'make demo         render a bag of a room, run the odometry on it, report in $(DEMO)'
	@echo 'make parameters   write config/odometry.yaml and docs/parameters.md anew after a change of flowodom/config.py'
	@echo 'make clean        remove what these made, .venv included'

# Torch comes first and alone, so that a build for this machine that pip has been shown (a local CPU wheel, another
# index) is taken before anything else asks for torch.
$(VENV)/installed: setup.py setup.cfg pyproject.toml constraints.txt
	@echo 'installing into $(VENV); the first time this takes minutes'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-tests: $(VENV)/installed
	$(PIP) --editable '.[test,dds]'
	@touch $@

test: lint types unit

lint: $(VENV)/installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-tests
	$(BIN)/mypy

unit: $(VENV)/installed-tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --durations=10

$(DEMO)/room.mcap: | $(VENV)/installed
	mkdir -p $(DEMO)
	$(BIN)/flowodom render $(DEMO)/rendering.mcap --overwrite
	mv $(DEMO)/rendering.mcap $@

demo: | $(VENV)/installed $(DEMO)/room.mcap
	$(BIN)/flowodom replay $(DEMO)/room.mcap --out $(DEMO) --set base_frame=camera_link
	@echo 'open $(DEMO)/report.html in a browser, $(DEMO)/odometry.mcap in Foxglove'

# The parameter file and the page of parameters, made from flowodom/config.py; tests hold them equal to it.
parameters: $(VENV)/installed
	$(BIN)/python test/test_pages.py

clean:
	rm -rf $(VENV) out .mypy_cache .pytest_cache .ruff_cache build ./*.egg-info
