# Everything a developer types. Each target sets up first what it needs; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo psql test lint unit integration stress molecule bench changelog lock clean

PY := .venv/bin/python
READY := .cache/.ready

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and .collections (does only what is missing)
	@$(PY) tools/install_collections.py

$(READY): requirements/dev.txt requirements/collections.yml requirements/collections.txt tools/setup.sh tools/install_collections.py
	@bash tools/setup.sh
	@touch $@

demo: setup ## migrate a real PostgreSQL database with the reference case (RESET=1, PLAYBOOK=rehearse, APP=1 switches the application too)
	@$(PY) tools/demo.py run $(if $(RESET),--reset) $(if $(APP),--application) $(if $(PLAYBOOK),--playbook $(PLAYBOOK))

psql: setup ## look at the demo's database
	@$(PY) tools/demo.py psql

test: setup ## run every check and every test
	@$(PY) tools/run_tests.py

lint: setup ## run the static checks only
	@$(PY) tools/run_tests.py --stage lint --stage sanity

unit: setup ## run the unit tests
	@$(PY) tools/run_tests.py --stage unit

integration: setup ## run the tests against every PostgreSQL major
	@$(PY) tools/run_tests.py --stage integration

stress: setup ## run many histories of writes under sync, and beside online migrations (STRESS_HISTORIES=1000 STRESS_SEED=0)
	@UNIFIED_USER_STRESS_HISTORIES=$(or $(STRESS_HISTORIES),1000) $(PY) -m pytest -q -n 2 --all-majors --hypothesis-seed=$(or $(STRESS_SEED),0) tests/integration/test_sync_histories.py tests/integration/test_online.py

molecule: setup ## run the scenario on containers with systemd
	@$(PY) tools/run_tests.py --stage molecule

bench: setup ## measure the copy against its references (BENCH_SIZES="30000 300000 3000000"), or as BENCH_OPTIONS says: --backup, --online, --sync N
	@$(PY) tools/bench $(if $(BENCH_SIZES),--sizes $(BENCH_SIZES)) $(if $(BENCH_REPETITIONS),--repetitions $(BENCH_REPETITIONS)) $(BENCH_OPTIONS)

changelog: setup ## rewrite CHANGELOG.rst from changelogs/fragments
	@$(PY) tools/changelog.py

lock: ## compile requirements/*.in into the locks
	@bash tools/lock.sh

clean: ## remove everything made here, servers and their data included
	@if [ -x $(PY) ]; then $(PY) tools/embedded_postgres.py clean; fi
	@rm -rf .venv .collections .cache .pytest_cache .ruff_cache .hypothesis .ansible tests/output *.tar.gz
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
