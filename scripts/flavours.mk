# SPDX-License-Identifier: Apache-2.0
#
# The C tests of libpno.so and pno.so, in three flavours: plain, under ASan and
# UBSan, and under TSan. The library's objects are compiled once for each
# flavour, and every test is linked with them.
#
# Included by a Makefile that has set SRC, HDR, TESTS, DOUBLE, TEST_HDR, CFLAGS,
# LIBS, TEST_DIR, and RUN if the tests need something to run them.

FLAGS_plain :=
FLAGS_asan := -fsanitize=address,undefined -fno-sanitize-recover=undefined
FLAGS_tsan := -fsanitize=thread
TEST_NAMES := $(TESTS:test/%.c=%)

define flavour
OBJ_$1 := $$(SRC:src/%.c=$(TEST_DIR)/$1/obj/%.o) $$(DOUBLE:test/%.c=$(TEST_DIR)/$1/obj/%.o)

$(TEST_DIR)/$1/obj/%.o: src/%.c $(HDR)
	@mkdir -p $$(@D)
	$(CC) $(CFLAGS) $(FLAGS_$1) -c -o $$@ $$<
$(TEST_DIR)/$1/obj/%.o: test/%.c $(HDR) $(TEST_HDR)
	@mkdir -p $$(@D)
	$(CC) $(CFLAGS) $(FLAGS_$1) -Isrc -c -o $$@ $$<
$(TEST_NAMES:%=$(TEST_DIR)/$1/%): $(TEST_DIR)/$1/%: test/%.c $$(OBJ_$1) $(TEST_HDR)
	$(CC) $(CFLAGS) $(FLAGS_$1) -Isrc -o $$@ $$< $$(OBJ_$1) $(LIBS)

.PHONY: run-$1 $(TEST_NAMES:%=run-$1-%)
run-$1: $(TEST_NAMES:%=run-$1-%)
$(TEST_NAMES:%=run-$1-%): run-$1-%: $(TEST_DIR)/$1/%
	$(RUN) $$<
endef
$(foreach f,plain asan tsan,$(eval $(call flavour,$f)))

.PHONY: test asan tsan
test: run-plain
asan: run-asan
tsan: run-tsan
