# Everything runs in a virtual environment of its own, .venv, which `make setup` fills. To use another Python with the
# requirements installed: make test VENV_PYTHON=python
PYTHON ?= python3
VENV_PYTHON ?= .venv/bin/python

# Two processes of one thread each (tests/conftest.py). The one that has done its half of the tests takes some of the other's.
PYTEST = -m pytest -q -n 2 --dist=worksteal

.PHONY: setup audit demo test test-all test-lowest test-d2 test-mmdet lint bench chaos coverage evidence

setup: .venv/complete

.venv/packages: requirements.txt
	@echo "Installing the packages of requirements.txt into .venv, which takes a minute or two ..."
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/complete: .venv/packages requirements-dev.txt pretrain/requirements.txt
	@echo "Installing what developers need into .venv ..."
	.venv/bin/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	.venv/bin/python -m pip check
	touch $@

ifeq ($(VENV_PYTHON),.venv/bin/python)
demo: .venv/packages
audit test test-all lint bench chaos coverage evidence: .venv/complete
endif

# Pretrains a small network on drawn pictures, shows its reconstructions, and compares its features with those of the same network
# untrained: under five minutes on two cores.
demo:
	$(VENV_PYTHON) -m pretrain.demo

# Lint and all tests but the slow ones: six to twenty minutes on two cores.
test: lint
	$(VENV_PYTHON) $(PYTEST) -m "not slow" --durations=10

test-all: lint
	$(VENV_PYTHON) $(PYTEST) --durations=20

# The same tests on the lowest versions that requirements.txt allows.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip
	sed 's/>=/==/' requirements.txt > .venv-lowest/requirements.txt
	.venv-lowest/bin/python -m pip install --quiet -r .venv-lowest/requirements.txt -r requirements-dev.txt
	.venv-lowest/bin/python $(PYTEST) -m "not slow"

# Detectron2's and MMDetection's folders with the real thing, each in an environment of its own, which takes minutes to build.
# D2_SRC: a folder with the source of Detectron2, or where git finds it; GitHub if not given.
test-d2: .venv-d2/complete
	.venv-d2/bin/python $(PYTEST) tests/downstream_d2

test-mmdet: .venv-mmdet/complete
	.venv-mmdet/bin/python $(PYTEST) tests/downstream_mmdet

.venv-d2/complete .venv-mmdet/complete: .venv-%/complete: requirements.txt requirements-dev.txt downstream_%/install.sh
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --upgrade pip
	.venv-$*/bin/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	PYTHON=$(CURDIR)/.venv-$*/bin/python bash downstream_$*/install.sh
	touch $@

# Do the installed packages fit each other, and are vulnerabilities of them known? The latter is asked of a database on the network.
audit:
	$(VENV_PYTHON) -m pip check
	$(VENV_PYTHON) -m pip install --quiet pip-audit
	$(VENV_PYTHON) -m pip_audit --strict  # not content with packages that the database does not know

lint:
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m nbstripout --verify pretrain/*.ipynb  # outputs stay out of git; without --verify it strips them

# Every convolutional network of timm, into docs/coverage.md: hours on two cores. Run again, it goes on where it stopped.
coverage:
	$(VENV_PYTHON) -m pretrain.check --all --jobs=2

# What pretraining is worth on photographs: a day on two cores, question by question. Run again, it goes on where it stopped.
# DATA: a folder with train/ and val/, each with a folder for each class, or tars of such. The results stay in
# evidence_output/cpu until python -m benchmarks.evidence --publish puts them into docs/transfer.md.
evidence:
	$(VENV_PYTHON) -m benchmarks.evidence $(if $(DATA),--data_path="$(DATA)")

bench:
	$(VENV_PYTHON) -m benchmarks.profile
	$(VENV_PYTHON) -m benchmarks.encoder
	$(VENV_PYTHON) -m benchmarks.step
	$(VENV_PYTHON) -m benchmarks.detection
	$(VENV_PYTHON) -m benchmarks.saving
	$(VENV_PYTHON) -m benchmarks.input
	$(VENV_PYTHON) -m benchmarks.plan
	$(VENV_PYTHON) -m benchmarks.scale
	$(VENV_PYTHON) -m benchmarks.host
	$(VENV_PYTHON) -m benchmarks.start
	$(VENV_PYTHON) -m benchmarks.convmae

# Kills runs again and again, and compares their end with an undisturbed run's: under an hour on two cores.
chaos:
	$(VENV_PYTHON) -m benchmarks.chaos --kills=100 --procs=1
	$(VENV_PYTHON) -m benchmarks.chaos --kills=100 --procs=2
