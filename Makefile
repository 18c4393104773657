# Every command makes .venv when it is not there yet; nothing is installed anywhere else.
# GNU make 3.81, which is what a Mac has, is enough.

VENV = .venv
PYTHON ?=#        the Python that makes .venv; the newest on PATH unless given (`make clean` to change it)
PORT ?= 8888
HOST = localhost#  0.0.0.0 in a container whose port is published
NOTEBOOKS = notebooks/*.ipynb
BUILD = build

python = $(VENV)/bin/python
ready = $(VENV)/ready
ready_for_site = $(VENV)/ready_for_site#  a browser's remote control and Sphinx: 250 MB that `make lab` does without

.PHONY: help lab test demo notebooks site lint soak clean

help:
	@echo 'make lab         open the tour in JupyterLab (PORT=8888 HOST=localhost)'
	@echo 'make test        unit tests, every notebook, compared with what it shows here, and the browser tests'
	@echo 'make demo        a few seconds in the terminal, no browser: a pool fills, a model answers'
	@echo 'make notebooks   run every notebook again, in place (NOTEBOOKS=notebooks/03*.ipynb for some)'
	@echo 'make site        the tour as web pages in _site, which open from disk; runs nothing again'
	@echo 'make lint        ruff and mypy'
	@echo 'make soak        the full product of every test matrix, for hours'
	@echo 'make clean       remove .venv, _site, screenshots and every cache in this folder'

lab: $(ready)
	@echo 'JupyterLab starts on port $(PORT), or the next one that is free; its link comes last. Control-C ends it.'
	@exec $(python) -m jupyterlab --allow-root --ip=$(HOST) --port=$(PORT) \
	    --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

test: $(ready) $(ready_for_site)
	$(python) -m pytest -n auto --maxprocesses=8 --dist loadscope \
	    --nbval --nbval-current-env --nbval-cell-timeout=120 -rs tests notebooks

demo: $(ready)
	@$(python) -m paged_core demo
	@echo && echo 'And a trained model, which goes on from three beginnings at once, out of one paged cache:' && echo
	@$(python) -m paged_core generate 'In the beginning' 'And Jesus said unto them,' 'The LORD is my shepherd;' \
	    --temperature 0.6 --seed 4 --max-new-tokens 60

notebooks: $(ready)
	$(python) tools/notebooks.py $(NOTEBOOKS)
	$(python) tools/picture.py

site: $(ready) $(ready_for_site)
	@rm -rf $(BUILD)/site
	@echo 'Building the site from the notebooks as they were last run ...'
	@$(python) -m sphinx -q -W --keep-going -c docs -d $(BUILD)/site/doctrees . $(BUILD)/site/html
	@rm -rf _site && mv $(BUILD)/site/html _site
	@echo 'Open _site/index.html in a browser; it needs no server and no network.'

lint: $(ready)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

soak: $(ready)
	$(python) -m pytest -n auto --maxprocesses=8 -m soak tests

clean:
	rm -rf $(VENV) build dist _site screenshots .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +

$(ready): pyproject.toml tools/make_venv.sh tools/lab_settings.json
	@PYTHON='$(strip $(PYTHON))' sh tools/make_venv.sh $(VENV)
	@echo 'Installing into $(VENV); the first time takes a minute or two.'
	@$(python) -m pip install -qq --editable '.[lab,models,test,lint]' || { \
	    echo 'The installation failed, see above. It needs the network, and MLX needs a Mac with Apple silicon or' >&2; \
	    echo 'Linux with glibc 2.35 or newer (Ubuntu 22.04, Debian 12).' >&2; exit 1; }
	@mkdir -p $(VENV)/share/jupyter/lab/settings && \
	    cp tools/lab_settings.json $(VENV)/share/jupyter/lab/settings/overrides.json  # no question about news; players are saved, too
	@touch $@

$(ready_for_site): $(ready)
	@echo 'Installing what the site and the browser tests need, once.'
	@$(python) -m pip install -qq --editable '.[site,browser]'
	@touch $@
