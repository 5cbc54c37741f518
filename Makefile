# `make` lists what there is. Each target sets up what it needs; a second run finds it done.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
export PYTHONPATH := $(CURDIR):$(CURDIR)/agents
export DRENGINE_PASS_ENVIRONMENT := PYTHONPATH
# Tests start thousands of Python processes: each would compile all that it imports where this is set.
unexport PYTHONDONTWRITEBYTECODE
ARGS ?=
BUILDER ?= podman
# Many tests wait for processes; those that use the machine as a whole run alone (tests/conftest.py).
WORKERS ?= 4

.PHONY: help demo test campaigns check bench soak targets live postgres crash field fuzz agent packages image packaged ansible lock docs clean oracle
help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## the whole story on this machine, unprivileged, in about a minute (ARGS=--json for machines)
	@$(PY) -m demo $(ARGS)

test: $(VENV)/.test ## set up and run the tests (installs Debian packages when root; otherwise says what it skips)
	@./deploy/test-tools >&2
	@./deploy/run-tests $(PY) -m 'machine and not campaign' $(ARGS)
	@./deploy/run-tests $(PY) -m 'not machine and not campaign' -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

campaigns: $(VENV)/.test ## attack real parties again and again: planted faults, killed upgrades, servers that join (about ten minutes, as root)
	@./deploy/test-tools >&2
	@./deploy/run-tests $(PY) -m campaign $(ARGS)

check: $(VENV)/.check ## style, types, import direction, dead code, dependencies, generated documents
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/vulture
	$(VENV)/bin/deptry .
	$(PY) -m tools.documents --check

docs: $(VENV)/.test ## write the generated documents anew
	$(PY) -m tools.documents

bench: $(VENV)/.bench ## measure beside the peers; results in bench-results/ (ARGS="--quick" for a short round)
	@./deploy/test-tools >&2
	@$(PY) -m benchmarks $(ARGS)

soak: $(VENV)/.test ## kill agent and target again and again under load (ARGS="--seed N --kills 200")
	@$(PY) -m tests.soak $(ARGS)

targets: $(VENV)/.test ## kill and cut off targets of one store again and again (as root; ARGS="--seed N --kills 200")
	@$(PY) -m tests.soak.targets $(ARGS)

live: $(VENV)/.test ## SIGKILL an agent that tracks live disks again and again under load, as root (ARGS="--kills 100")
	@$(PY) -m tests.soak.live $(ARGS)

postgres: $(VENV)/.test ## SIGKILL the target under a recovered PostgreSQL again and again, as root (ARGS="--kills 50")
	@$(PY) -m tests.soak.postgres $(ARGS)

crash: $(VENV)/.test ## replay recorded I/O to every persistence point (ARGS="--seed N")
	@$(PY) -m tests.crash.campaign $(ARGS)

field: $(VENV)/.bench ## try what users reported, on real processes and devices, best as root (ARGS="--list" or "--only NAME --seed N --scale 5 --json --plots DIR")
	@./deploy/test-tools stress-ng:stress-ng faketime:faketime fio:fio >&2
	@$(PY) -m tests.field $(ARGS)

fuzz: $(VENV)/.test ## strangers and misbehaving parties at living daemons, while honest ones are measured (ARGS="--seconds 60 --seed N --json")
	@$(PY) -m tests.fuzz $(ARGS)

agent: $(VENV)/.runtime ## the agent as one file, dist/drengine-agent: needs nothing but CPython 3.11 to 3.14
	@$(PY) -m tools.onefile $(ARGS)

packages: $(VENV)/.packages ## .deb and .rpm of agent and server side, in dist/ (ARGS="--only agent")
	@$(PY) -m tools.packages $(ARGS)

image: packages ## container image drengine of the recovery side, from its package (BUILDER=podman)
	@$(BUILDER) build -f deploy/Containerfile -t drengine dist

packaged: packages ## install, upgrade and purge the packages on hosts of their own, as root
	@./deploy/test-tools rpm:rpm man:man-db buildah:buildah mmdebstrap:mmdebstrap >&2
	@DRENGINE_PACKAGES=$(CURDIR)/dist $(PY) -m pytest -q -rs tests/packages

ansible: $(VENV)/.test $(VENV)-ansible/.ansible ## lint the role, and join a host of its own by it twice, as root
	@cd deploy/ansible && PATH="$(abspath $(VENV)-ansible/bin):$$PATH" ansible-lint --offline -q
	@DRENGINE_ANSIBLE=$(abspath $(VENV)-ansible/bin) $(PY) -m pytest -q -rs tests/ansible $(ARGS)

oracle: $(VENV)/.test ## what eBPF tracks against what a full comparison finds, as root (ARGS="--operations 5000 --seed N")
	@$(PY) -m tests.agent.capture.ebpf.oracle $(ARGS)

lock: ## renew the lock files from pyproject.toml
	@for set in runtime demo test check bench packages; do \
	  group=$$([ $$set = runtime ] && echo --extra notifications --extra postgres --extra s3 || echo --group $$set); \
	  $(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    $$group -o requirements/$$set.lock pyproject.toml || exit 1; done
	@for set in agent ansible; do \
	  $(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --group pyproject.toml:$$set -o requirements/$$set.lock || exit 1; done

clean: ## remove what make made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache bench-results

# One environment; each set of packages leaves a stamp. Everything said here goes to standard error.
$(VENV)-ansible/.ansible: requirements/ansible.lock
	@PYTHON=$(PYTHON) ./deploy/set-up $(VENV)-ansible $< >&2
	@touch $@
$(VENV)/.%: requirements/%.lock
	@PYTHON=$(PYTHON) ./deploy/set-up $(VENV) $< >&2
	@touch $@
