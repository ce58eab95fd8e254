# The main job is `make demo`, the proof is `make test`.  Both install what a fresh Debian 12
# machine lacks; run them as root.

KERNEL ?= 6.12
KERNELS := 6.12 6.1
VENV := .venv
PYTHON := $(VENV)/bin/python
OUT := out/demo

DEBUG_KERNEL := tests/debug/kernel/build.sh
PYTEST := $(PYTHON) -m pytest -q
# Runs a suite by the name of its target: its output, durations and JUnit report are kept in out/.
SUITE = @tests/suite.sh run $@
SUITE_PYTEST = $(SUITE) env STACKMAP_REQUIRE=$(1) $(PYTEST) --durations=20 --durations-min=1 \
	--junitxml out/junit/$@.xml -p no:cacheprovider
# Tests that find the same on any kernel, as far as anybody knows, run on the first one; those that
# take minutes run in test-long.
LATER_KERNELS := $(wordlist 2,$(words $(KERNELS)),$(KERNELS))
ON_KERNEL = --kernel $* -m 'not long$(if $(filter $(LATER_KERNELS),$*), and not first_kernel)'
THE_REST = --kernel $* -m 'long$(if $(filter $(LATER_KERNELS),$*), or first_kernel)'
comma := ,
# A suite of two hosts keeps two processors busy; more at a time starve tests of their clients.
JOBS ?= $(shell nproc)

PYTHON_INPUTS := pyproject.toml setup.py $(wildcard stackmap/_ring*.[ch] stackmap/_ring_build.py stackmap/_fast*.[ch] \
	kmod/uapi/*.h $(addprefix testbed/stackmap_testbed/load/,_load.[ch] _mark.h _load_build.py) \
	$(addprefix testbed/stackmap_testbed/cost/,_echo.[ch] _echo_build.py))
CHECKED_PYTHON := stackmap cli testbed tests examples setup.py

TEST_SUITES := $(KERNELS:%=test-vm-%) $(KERNELS:%=test-lab-%) test-unit
CHECK_SUITES := check-kmod check-python check-shell
GATES := $(KERNELS:%=bench-gate-%)

.PHONY: demo lab bench-gate $(GATES) bench-connections bench-goals bench-models bench-rings bench-slots profile soak test $(TEST_SUITES) test-long durations ci \
	test-debug test-lifetimes debug-kernel fuzz check check-python check-shell \
	check-kmod kmod bytecode setup packages test-packages check-packages clean

# TUNED=1 compares with sockets whose server polls its NIC busily.
demo: setup
	@$(PYTHON) -m stackmap_testbed.comparison.demo --kernel $(KERNEL) --out $(OUT) $(if $(TUNED),--tuned)

lab: setup
	@$(VENV)/bin/stackmap lab up --kernel $(KERNEL)

# Runs suites side by side, in this order, and shows afterwards what they said, failed ones last.
define together
@rm -rf out/test out/junit
@echo 'running $(1); their output is in out/test'
@QUIET=yes $(MAKE) --no-print-directory -k -j$(JOBS) -o packages -o setup -o test-packages -o check-packages $(1) || :
@tests/suite.sh show $(1)
endef

test: setup test-packages
	$(call together,$(TEST_SUITES))

# What CI runs.  The gates count instructions: what else runs beside them does not matter.
ci: setup test-packages check-packages
	$(call together,$(GATES) $(TEST_SUITES) $(CHECK_SUITES))

# What takes hours.
test-long:
	$(MAKE) $(KERNELS:%=test-rest-%)
	$(MAKE) test-debug
	$(MAKE) test-lifetimes
	$(MAKE) fuzz MINUTES=20
	$(MAKE) soak
	$(MAKE) test-oracle
	$(MAKE) bench-connections
	$(MAKE) bench-rings
	$(MAKE) bench-models

# asyncio's transport against the standard library's, and lives of servers: what CI does a little of.
EXAMPLES ?= 10000
test-oracle: setup test-packages
	STACKMAP_LONG=1 STACKMAP_EXAMPLES=$(EXAMPLES) $(PYTEST) tests/unit/test_aio_oracle.py \
		tests/unit/test_aio_loop.py
	$(PYTHON) -m tests.debug.uml --timeout 7200 env STACKMAP_LONG=1 STACKMAP_EXAMPLES=$(EXAMPLES) \
		$(PYTEST) -p no:cacheprovider -p no:hypothesispytest tests/guest/test_aio_oracle.py \
		tests/guest/test_aio_loop.py

durations:
	@$(PYTHON) -m tests.durations

test-unit: setup test-packages
	$(call SUITE_PYTEST,unit) tests/unit

$(KERNELS:%=test-vm-%): test-vm-%: setup test-packages
	$(call SUITE_PYTEST,vm) $(ON_KERNEL) tests/vm

$(KERNELS:%=test-lab-%): test-lab-%: setup
	$(call SUITE_PYTEST,lab) $(ON_KERNEL) tests/lab

# The tests that `make test` leaves out.
$(KERNELS:%=test-rest-%): test-rest-%: setup
	$(call SUITE_PYTEST,vm$(comma)lab) $(THE_REST) tests/vm tests/lab

# Kernels that look for what tests cannot see.  The first build takes most of an hour; see
# docs/testing.md.
debug-kernel: packages
	@testbed/setup.sh debug-packages
	@for variant in uml smp kcsan; do $(DEBUG_KERNEL) $$variant || exit 1; done

# uml runs all that a guest can; smp, which takes four times as long as Debian's kernels, what may
# differ between processors.
test-debug: setup debug-kernel
	STACKMAP_REQUIRE=debug $(PYTEST) -o faulthandler_timeout=0 tests/debug
	kernel=$$($(DEBUG_KERNEL) smp) && \
	testbed/setup.sh module-for $$kernel $(CURDIR)/build/kmod/$$(ls $$kernel/lib/modules) && \
	STACKMAP_REQUIRE=vm $(PYTEST) -o faulthandler_timeout=0 --timeout 900 --kernel $$kernel --cpus 2 \
		-m concurrent tests/vm

# Hostile applications at random, beside an honest one.  KERNEL=uml (the default), smp, kcsan, 6.12
# or 6.1; SEED=n repeats what a run's threads did; SLOTS=n fails a run that mutated fewer.
FUZZ_KERNEL = $(if $(filter file,$(origin KERNEL)),uml,$(KERNEL))
MINUTES ?= 1
fuzz: setup
	@$(if $(filter uml smp kcsan,$(FUZZ_KERNEL)),testbed/setup.sh debug-packages && \
		$(DEBUG_KERNEL) $(FUZZ_KERNEL) >/dev/null)
	@$(PYTHON) -m tests.fuzz.run --kernel $(FUZZ_KERNEL) --minutes $(MINUTES) \
		$(if $(SEED),--seed $(SEED)) $(if $(SLOTS),--slots $(SLOTS))

# Every end of a port in every situation: ROUNDS times on the debug kernels, but for the ends of
# processes on smp, which is emulated where there is no KVM: SMP_ROUNDS times; once on Debian's.
ROUNDS ?= 20
SMP_ROUNDS ?= 3
test-lifetimes: setup
	@testbed/setup.sh debug-packages
	@for variant in uml smp; do $(DEBUG_KERNEL) $$variant || exit 1; done
	$(PYTHON) -m tests.debug.uml --timeout 14400 \
		env STACKMAP_REQUIRE=guest STACKMAP_ROUNDS=$(ROUNDS) \
		$(abspath $(PYTHON)) -B -m pytest -q -p no:cacheprovider -p no:hypothesispytest \
		-o faulthandler_timeout=0 tests/guest/test_lifetimes.py
	kernel=$$($(DEBUG_KERNEL) smp) && \
	testbed/setup.sh module-for $$kernel $(CURDIR)/build/kmod/$$(ls $$kernel/lib/modules) && \
	STACKMAP_REQUIRE=vm STACKMAP_ROUNDS=$(ROUNDS) $(PYTEST) -o faulthandler_timeout=0 \
		--kernel $$kernel --cpus 2 tests/vm/test_unplug.py && \
	STACKMAP_REQUIRE=vm STACKMAP_ROUNDS=$(SMP_ROUNDS) $(PYTEST) -o faulthandler_timeout=0 \
		--kernel $$kernel --cpus 2 -k lifetimes tests/vm/test_inside.py
	for kernel in $(KERNELS); do STACKMAP_REQUIRE=vm STACKMAP_ROUNDS=1 $(PYTEST) --kernel $$kernel \
		-k 'lifetimes or unplug' tests/vm || exit 1; done

# Messages over a lossy wire, with applications that are killed; KERNEL=uml (the default), 6.12, 6.1.
MESSAGES ?= 10000000
soak: setup
	@$(if $(filter uml,$(FUZZ_KERNEL)),testbed/setup.sh debug-packages && $(DEBUG_KERNEL) uml >/dev/null)
	@$(PYTHON) -m tests.soak --kernel $(FUZZ_KERNEL) --messages $(MESSAGES) --out out/soak.json

# What a request costs the server with ten thousand connections, compared to a hundred.
bench-connections: setup
	@$(PYTHON) -m stackmap_testbed.cost.many_connections --kernel $(KERNEL) --out out/bench-connections.json

# Throughput of two rings on two processors over one, and of epoll's beside it.
bench-rings: setup
	@$(PYTHON) -m stackmap_testbed.cost.two_rings --kernel $(KERNEL) --out out/bench-rings.json

# The cost of a request to the server alone, by event loop, model and layer; half an hour.
bench-models: setup
	@$(PYTHON) -m stackmap_testbed.cost.models --kernel $(KERNEL) --out out/bench-models.json

# What a request costs the server by part, printed and drawn; OPTIONS are those of the command.
profile: setup
	@$(PYTHON) -m stackmap_testbed.cost.profile --kernel $(KERNEL) --out out/profile $(OPTIONS)

# Rings over sockets, plain and tuned, on both kernels: the table in docs/measuring.md.
bench-goals: setup
	@$(PYTHON) -m stackmap_testbed.cost.goals --kernels $(KERNELS) --out out/bench-goals.json

# Throughput of one connection on a ring and on a socket, by size of slot and round trip.
bench-slots: setup
	@$(PYTHON) -m tests.slots --kernel $(KERNEL) --out out/bench-slots-$(KERNEL).json

# What a request costs the server on rings, held to figures that are kept; UPDATE=1 keeps new ones.
bench-gate: $(GATES)

$(GATES): bench-gate-%: setup
	$(SUITE) $(PYTHON) -m stackmap_testbed.cost.gate --kernel $* --out out/$@.json \
		$(if $(UPDATE),--update)

check: $(CHECK_SUITES)

check-python: setup
	$(SUITE) sh -ec '$(VENV)/bin/ruff check $(CHECKED_PYTHON); \
		$(VENV)/bin/mypy -p stackmap -p stackmap_cli -p stackmap_testbed; $(VENV)/bin/mypy tests examples; \
		$(VENV)/bin/basedpyright'

check-shell: check-packages
	$(SUITE) shellcheck testbed/*.sh tests/suite.sh tests/debug/kernel/build.sh .ci/run

check-kmod: check-packages
	$(SUITE) testbed/check-kmod.sh $(CURDIR)/build/check-kmod

setup: packages bytecode kmod

packages:
	@testbed/setup.sh packages

test-packages: packages
	@testbed/setup.sh test-packages

check-packages: packages
	@testbed/setup.sh check-packages

$(VENV)/.installed: $(PYTHON_INPUTS) | packages
	@testbed/setup.sh python $(VENV)
	@touch $@

# Guests see this tree read-only: what is not compiled here, each of their processes compiles anew.
bytecode: $(VENV)/.installed
	@$(PYTHON) -m compileall -q $(CHECKED_PYTHON)

kmod: packages
	@testbed/setup.sh module $(CURDIR)/build/kmod

clean:
	rm -rf build dist out *.egg-info stackmap/_ring_c.* stackmap/_fast.*.so testbed/stackmap_testbed/load/_load_c.* $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
