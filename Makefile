# make                 ./qlora, and libqlora-cuda.so where there is nvcc
# make help            all targets and variables
#
# Folders are modules: every .c in them belongs to libqlora.a, and tests/run/includes.sh checks which may include which.
# probe.sh looks for compiler and libraries; what it finds goes to $(B)/config.mk.
# Another build folder B holds another variant: its program is $(B)/qlora then, not ./qlora.
MODULES := cli train model lora datasets pager backend/cpu backend checkpoint tokenizer nf4 base

B ?= build
PREFIX ?= /usr/local
SECONDS ?= 30
STATS ?= 1
KINDS ?= unit ops golden fault fuzz run
CFLAGS ?= -O2 -g
# As many jobs as processors, unless -j says otherwise. Several goals go one after the other; a make below another shares its jobs.
ifeq ($(MAKELEVEL)$(word 2,$(MAKECMDGOALS)),0)
  MAKEFLAGS += -j$(shell nproc)
endif
ifeq ($(origin CC),default)
  CC := $(or $(shell command -v gcc clang cc 2>/dev/null | head -n 1),gcc)
endif

NEEDS_BUILD := $(filter-out help clean asan valgrind fuzz coverage mutants uninstall,$(or $(MAKECMDGOALS),all))
ifneq ($(NEEDS_BUILD),)
  include $(B)/config.mk
endif
export CC CPPFLAGS CFLAGS LDFLAGS WERROR CBLAS CUDA NVCC ARCH INSTALL

# -ffp-contract=off: a fused multiply-add where the machine has one would give other bits than where it has none.
WARN := -Wall -Wextra -Wshadow -Wmissing-prototypes -Wconversion $(if $(filter 1,$(WERROR)),-Werror)
COMPILE = $(CC) -std=gnu11 -I. -MMD -MP -fPIC -ffp-contract=off $(WARN) $(OPENMP) $(CPPFLAGS) $(CFLAGS)
LINK = $(CC) $(CFLAGS) $(OPENMP) $(LDFLAGS) -o $@
LIBS = -lcjson -lz -lm -ldl -lpthread $(LDLIBS)
# ptxas says so when a kernel spills registers: that is a bug in its tile sizes.
NVCOMPILE = $(NVCC) -std=c++17 -O3 -I. -MMD -MP -lineinfo $(GENCODE) -Xptxas --warn-on-spills \
	-Xcompiler -fPIC,-Wall,-Wextra,-fvisibility=hidden $(if $(filter 1,$(WERROR)),-Werror all-warnings) $(NVFLAGS)
ifndef V
  Q = @printf '%-5s %s\n' $(word 1,$(1)) $(or $(word 2,$(1)),$@) &&
endif

AT := $(if $(filter-out build,$(B)),$(B)/)
SRC := $(wildcard $(MODULES:=/*.c))
OBJ := $(SRC:%.c=$(B)/%.o)
LIB := $(B)/libqlora.a
PROGRAM := $(if $(wildcard qlora.c),$(AT)qlora)
PLUGIN := $(AT)libqlora-cuda.so
PLUGIN_OBJ := $(patsubst %.cu,$(B)/%.cu.o,$(wildcard backend/cuda/*.cu))
# $(call tests,KIND..,PATTERN): files of these folders of tests/, unless KINDS leaves them out; with ONLY in the name
tests = $(call only,$(wildcard $(patsubst %,tests/%/$(2),$(filter $(1),$(KINDS)))))
only = $(if $(ONLY),$(foreach f,$(1),$(if $(findstring $(ONLY),$(notdir $(f))),$(f))),$(1))
TESTS := $(patsubst %.c,$(B)/%,$(call tests,unit ops golden fault,*.c))
REPLAYS := $(patsubst %.c,$(B)/%,$(call tests,fuzz,fuzz_*.c))
FUZZERS := $(REPLAYS:=.fuzzer)
SCRIPTS := $(call tests,fault run,*.sh)
BENCHES := $(patsubst %.c,$(B)/%,$(wildcard bench/*.c))
TOOLS := $(patsubst %.c,$(B)/%,$(wildcard examples/demo/*.c))
LOST_CARD := $(B)/tests/run/lost_card.so
HOG := $(B)/tests/run/hog
NAN_CARD := $(B)/tests/run/nan_card.so
# What scripts are told: where the program, the demo's tools, the backends for tests and a program that fills a card are.
WHERE := QLORA=$(if $(findstring /,$(PROGRAM)),,./)$(PROGRAM) TOOLS=$(B)/examples/demo LOST_CARD=$(LOST_CARD) NAN_CARD=$(NAN_CARD) HOG=$(HOG)

.PHONY: faults soak all demo test test-gpu sanitize-gpu bench install uninstall deb asan valgrind fuzz fuzzers coverage covering mutants clean help FORCE
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all
all: $(LIB) $(PROGRAM) $(if $(NVCC),$(PLUGIN))

$(B)/config.mk: FORCE
	@mkdir -p $(@D) && ./probe.sh $@

$(AT)qlora: $(B)/qlora.o $(LIB)
	$(call Q,LINK)$(LINK) $^ $(LIBS)
$(LIB): $(OBJ)
	$(call Q,AR)rm -f $@ && ar rcs $@ $^
$(B)/%.o: %.c $(B)/config.mk
	$(call Q,CC $<)mkdir -p $(@D) && $(COMPILE) -c -o $@ $<

# The plugin carries its own copy of what it uses of the library and shows only its entry points.
$(PLUGIN): $(PLUGIN_OBJ) $(LIB)
	$(call Q,LINK)$(NVCC) -shared $(GENCODE) -o $@ $^ -Xlinker --exclude-libs,ALL -lcublasLt -ldl -lm
$(B)/%.cu.o: %.cu $(B)/config.mk
	$(call Q,NVCC $<)mkdir -p $(@D) && $(NVCOMPILE) -c -o $@ $<

$(B)/tests/%: tests/%.c $(LIB)
	$(call Q,CC $<)mkdir -p $(@D) && $(COMPILE) $(LDFLAGS) -MF $@.d -o $@ $< $(LIB) $(LIBS)
$(REPLAYS): $(B)/%: %.c tests/fuzz/replay.c $(LIB)
	$(call Q,CC $<)mkdir -p $(@D) && $(COMPILE) $(LDFLAGS) -MF $@.d -Wno-missing-prototypes -o $@ $< tests/fuzz/replay.c $(LIB) $(LIBS)
$(FUZZERS): $(B)/%.fuzzer: %.c $(LIB)
	$(call Q,CC $<)mkdir -p $(@D) && $(COMPILE) $(LDFLAGS) -MF $@.d -Wno-missing-prototypes -fsanitize=fuzzer -o $@ $< $(LIB) $(LIBS)
$(LOST_CARD) $(NAN_CARD): $(B)/%.so: %.c $(LIB)
	$(call Q,CC $<)mkdir -p $(@D) && $(COMPILE) $(LDFLAGS) -shared -MF $@.d -o $@ $< $(LIB) -Wl,--exclude-libs,ALL $(LIBS)
$(B)/bench/%: bench/%.c $(LIB)
	$(call Q,CC $<)mkdir -p $(@D) && $(COMPILE) $(CBLAS_CFLAGS) $(LDFLAGS) -MF $@.d -o $@ $< $(LIB) $(LIBS) $(CBLAS_LIBS)
$(B)/examples/demo/%: examples/demo/%.c $(LIB)
	$(call Q,CC $<)mkdir -p $(@D) && $(COMPILE) $(LDFLAGS) -MF $@.d -o $@ $< $(LIB) $(LIBS)

demo: all $(TOOLS)
	@$(WHERE) WORK=$(B)/demo examples/demo/run.sh

# ---- tests (tests/README.md) ----
test: $(TESTS) $(REPLAYS) $(TOOLS) $(PROGRAM) $(LOST_CARD) $(NAN_CARD)
	@$(WHERE) tests/run.sh $(TESTS) $(REPLAYS) $(filter-out $(GPU_SCRIPTS),$(SCRIPTS))

# What runs on the card; the rest of make test does not know of it.
GPU_OPS := $(filter $(B)/tests/ops/test_cuda% $(B)/tests/ops/test_shapes $(B)/tests/ops/test_noise $(B)/tests/ops/test_pager,$(TESTS))
GPU_TESTS := $(GPU_OPS) $(filter $(B)/tests/golden/test_model_golden,$(TESTS))
GPU_SCRIPTS := $(filter tests/run/gpu_%,$(SCRIPTS))
ON_CARD := QLORA_POISON=1 QLORA_BACKEND=cuda QLORA_PLUGIN=$(abspath $(PLUGIN)) TEST_TIMEOUT=$(or $(TEST_TIMEOUT),600)
test-gpu: all $(TOOLS) $(GPU_TESTS) $(HOG) $(NAN_CARD)
	@$(WHERE) $(ON_CARD) tests/run.sh $(GPU_TESTS) $(GPU_SCRIPTS)

SANITIZER = $(shell command -v compute-sanitizer || ls $(dir $(NVCC))compute-sanitizer /usr/local/cuda/bin/compute-sanitizer 2>/dev/null | head -n 1)
CHECKS ?= memcheck racecheck synccheck initcheck
sanitize-gpu: all $(GPU_TESTS)
	@[ -n "$(SANITIZER)" ] || { echo "no compute-sanitizer in PATH or beside nvcc: it is a package of the CUDA toolkit (cuda-sanitizer)" >&2; exit 1; }
	@for tool in $(CHECKS); do echo "$$tool:"; \
		$(ON_CARD) EACH=1 RUNNER="$(SANITIZER) --tool $$tool --error-exitcode 99 --print-limit 20" tests/run.sh $(GPU_TESTS) || exit 1; \
		$(ON_CARD) SANITIZED="$(SANITIZER) --tool $$tool --error-exitcode 99 --print-limit 20" tests/run.sh tests/run/gpu_sanitized.sh || exit 1; done

SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
asan:
	@ASAN_OPTIONS=allocator_may_return_null=1 TEST_SHORT=1 TEST_TIMEOUT=$(or $(TEST_TIMEOUT),900) $(MAKE) B=$(B)/asan CFLAGS="-O1 -g $(SANITIZE)" CUDA=0 test

valgrind:
	@OMP_NUM_THREADS=1 TEST_TIMEOUT=$(or $(TEST_TIMEOUT),900) RUNNER="valgrind -q --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite" \
		$(MAKE) B=$(B)/valgrind CFLAGS="-O1 -g" CUDA=0 KINDS=unit test

# Without callbacks for comparisons twice to thrice as many inputs a second; strcmp and its like, dictionaries and mutators
# find what has to be compared.
SEARCHED := -fsanitize=fuzzer-no-link -fno-sanitize-coverage=trace-cmp
fuzz:
	@$(MAKE) B=$(B)/fuzz CC=clang CFLAGS="-O2 -g -Wno-pass-failed $(SEARCHED) $(SANITIZE)" CUDA=0 fuzzers
fuzzers: $(FUZZERS)
	@STATS=$(STATS) RUNS=$(RUNS) tests/fuzz/run.sh $(SECONDS) $(B)/corpus $(FUZZERS)

# Which lines and branches of the parsers the tests that know them and the corpus reach.
COVERING := hostile wrong_values deepspeed safetensors checkpoint json config tokenizer datasets questions flags yaml lora torch data_golden adapter
coverage:
	@$(MAKE) -s B=$(B)/coverage CC=gcc CFLAGS="-O0 -g --coverage" CUDA=0 covering
	@tests/coverage.sh $(B)/coverage
COVERERS := $(REPLAYS) $(sort $(foreach t,$(TESTS),$(if $(filter %_export_golden,$(t)),,$(if $(strip $(foreach w,$(COVERING),$(findstring $(w),$(notdir $(t))))),$(t)))))
covering: $(COVERERS)
	@find $(B) -name '*.gcda' -delete && tests/run.sh $(COVERERS)

# Small bugs that the tests must notice; ONLY=word: those with the word in them.
mutants:
	@tests/mutants/run.py $(ONLY)

# Long forms of tests/fault: every call, a hundred signals a phase; figures go to bench/results/faults.jsonl.
FIGURES ?= bench/results/faults.jsonl
faults: $(TESTS) $(TOOLS)
	@$(WHERE) FAULT_EVERY=1 SIGNALS=100 SIGNALS_OUT=$(abspath $(FIGURES)) TEST_TIMEOUT=86400 V=1 tests/run.sh $(filter $(B)/tests/fault/%,$(TESTS))
soak: $(B)/tests/fault/test_soak $(TOOLS)
	@$(WHERE) SOAK_SECONDS=$(SECONDS) SOAK_OUT=$(abspath $(FIGURES)) TEST_TIMEOUT=86400 V=1 tests/run.sh $(B)/tests/fault/test_soak

bench: all $(BENCHES) $(TOOLS)
	@$(WHERE) bench/run.sh $(BENCHES)

# ---- installing ----
RUN := $(if $(findstring /,$(PROGRAM)),,./)$(PROGRAM)
SHARE = $(DESTDIR)$(PREFIX)/share
install: all
	install -D -m 755 $(PROGRAM) $(DESTDIR)$(PREFIX)/bin/qlora
	[ ! -f $(PLUGIN) ] || install -D -m 755 $(PLUGIN) $(DESTDIR)$(PREFIX)/lib/qlora/libqlora-cuda.so
	$(RUN) help man >$(B)/qlora.1 && install -D -m 644 $(B)/qlora.1 $(SHARE)/man/man1/qlora.1
	$(RUN) help bash >$(B)/completion && install -D -m 644 $(B)/completion $(SHARE)/bash-completion/completions/qlora
	$(RUN) help zsh >$(B)/completion && install -D -m 644 $(B)/completion $(SHARE)/zsh/site-functions/_qlora
	install -d $(SHARE)/doc/qlora/examples $(SHARE)/doc/qlora/docs
	install -m 644 README.md README_zh.md SECURITY.md LICENSE $(SHARE)/doc/qlora
	install -m 644 docs/*.md $(SHARE)/doc/qlora/docs
	install -m 755 examples/*.sh $(SHARE)/doc/qlora/examples
	install -m 644 examples/*.yaml examples/*.json $(SHARE)/doc/qlora/examples

uninstall:
	rm -rf $(DESTDIR)$(PREFIX)/bin/qlora $(DESTDIR)$(PREFIX)/lib/qlora $(SHARE)/man/man1/qlora.1 $(SHARE)/doc/qlora \
		$(SHARE)/bash-completion/completions/qlora $(SHARE)/zsh/site-functions/_qlora

deb: all
	@rm -rf $(B)/deb && $(MAKE) -s B=$(B) DESTDIR=$(abspath $(B))/deb PREFIX=/usr install && packaging/deb.sh $(B)/deb $(B)


clean:
	rm -rf $(B) $(AT)qlora $(PLUGIN)

help:
	@sed -n 's/^#? \{0,1\}//p' Makefile
#? make              ./qlora, and libqlora-cuda.so where there is nvcc
#? make demo         a small model trained and asked, with what the repository holds
#? make test         all tests that need no GPU; the last line adds them up
#? make test-gpu     ops and golden tests and whole runs, on the card
#? make sanitize-gpu ops and golden tests on the card under compute-sanitizer; CHECKS="memcheck racecheck synccheck initcheck"
#? make asan         the tests under AddressSanitizer and UBSan
#? make valgrind     the unit tests under valgrind
#? make fuzz         every parser under libFuzzer (needs clang), SECONDS=30 each; RUNS=100000: so many inputs, always the same
#? make coverage     lines and branches of the parsers that unit and golden tests and the fuzzers' corpus reach
#? make mutants      small bugs put into copies of the sources, which the tests must notice
#? make faults       tests/fault in full: every call fails, is killed or loses power, 100 signals in each phase (hours)
#? make soak         SECONDS=900 of small steps with kills, signals, full disks and failing calls
#? make bench        kernels and whole steps, timed; added to bench/results/DEVICE-DATE.jsonl (RESULTS=FILE, RESULTS= for none)
#? make install      to PREFIX=/usr/local, below DESTDIR: program, plugin, manual, completions, docs; make uninstall
#? make deb          a Debian package in the build folder
#? make clean        remove what was built
#?
#? B=build           build folder; one folder per variant
#? KINDS="unit ops"  only the tests of these folders;  ONLY=nf4: only tests and fuzzers with this in their name
#? CC, CFLAGS, CPPFLAGS, LDFLAGS, WERROR=1, V=1 (show commands)
#? CUDA=0            leave the GPU out (1: insist);  NVCC=/path/to/nvcc;  ARCH="80 90" or native (default 80 86 89 90)
#? CBLAS=0           do not compare with OpenBLAS in bench/
#? INSTALL=0         never call apt-get for missing libraries; print the command instead

-include $(OBJ:.o=.d) $(PLUGIN_OBJ:.o=.d) $(B)/qlora.d $(TESTS:=.d) $(REPLAYS:=.d) $(FUZZERS:=.d) $(BENCHES:=.d) $(TOOLS:=.d) $(LOST_CARD).d $(NAN_CARD).d
