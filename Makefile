# first version: replaced soon. Folders are modules: every .c in them belongs to the library.
CC ?= gcc
CFLAGS ?= -O2 -g
WARN = -Wall -Wextra -Wshadow -Wmissing-prototypes -Wconversion
override CFLAGS += -std=gnu11 -I. -MMD -MP -fopenmp -ffp-contract=off $(WARN)
LDLIBS += -lcjson -lz -lm -ldl -lopenblas
B ?= build
SRC := $(wildcard base/*.c nf4/*.c checkpoint/*.c tokenizer/*.c datasets/*.c backend/*.c backend/cpu/*.c pager/*.c lora/*.c model/*.c train/*.c comm/*.c cli/*.c)
OBJ := $(SRC:%.c=$(B)/%.o)
TESTS := $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/unit/*.c tests/ops/*.c tests/golden/*.c))
qlora: $(B)/qlora.o $(B)/libqlora.a ; $(CC) $(CFLAGS) -o $@ $^ $(LDLIBS)
$(B)/libqlora.a: $(OBJ) ; rm -f $@ && ar rcs $@ $^
$(B)/%.o: %.c ; @mkdir -p $(@D) ; $(CC) $(CFLAGS) -c -o $@ $<
$(B)/tests/%: tests/%.c $(B)/libqlora.a ; @mkdir -p $(@D) ; $(CC) $(CFLAGS) -o $@ $< $(B)/libqlora.a $(LDLIBS)
test: qlora $(TESTS) ; @tests/run.sh $(TESTS)
.PHONY: test
-include $(shell find $(B) -name '*.d' 2>/dev/null)
