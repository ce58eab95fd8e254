// SPDX-License-Identifier: GPL-2.0
/*
 * A QEMU plugin that counts the instructions of a whole machine, and notes the count wherever the
 * machine executes the marker of _mark.h.
 *
 * It leaves the counts in a file (out=FILE): the number of markers met, then the count at each of
 * them, as 64-bit numbers.  It also counts each block of code by processor, and at each marker
 * writes into another file (blocks=FILE) what was executed since the one before: a struct section,
 * and its records.  QEMU's processors execute in turns, which can be made short (turn=INSTRUCTIONS).
 * No Debian package has QEMU's header, so what is used of version 1 of its plugin interface is
 * declared here.
 */
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "_blocks.h"
#include "_mark.h"

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
	void (*callback)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, enum qemu_plugin_op op,
	void *number, uint64_t amount);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb,
	void (*callback)(unsigned int, void *), enum qemu_plugin_cb_flags flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn,
	void (*callback)(unsigned int, void *), enum qemu_plugin_cb_flags flags, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);

/*
 * Not of that interface, but QEMU exports them to its own modules: the processor of a number, and
 * the end of its turn after the block under way.
 */
struct CPUState;
struct CPUState *qemu_get_cpu(int index);
void cpu_exit(struct CPUState *cpu);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

#define MARKS 4096

struct counts {
	uint64_t marks;
	uint64_t at[MARKS];
};

static const unsigned char mark[MARK_SIZE] = { MARK_BYTES };
static struct counts *counts;
static uint64_t executed;
static FILE *sections;

/* The instructions of a processor's turn; 0: as many as QEMU gives it. */
static int64_t turn, turn_left;
static unsigned int turn_of;

static void executed_in_turn(unsigned int cpu, void *data)
{
	const struct block *block = data;

	block_executed(cpu, data);
	if (cpu != turn_of || turn_left <= 0) {
		turn_of = cpu;
		turn_left = turn;
	}
	turn_left -= block->instructions;
	if (turn_left <= 0)
		cpu_exit(qemu_get_cpu(cpu));
}

static void note_mark(unsigned int cpu, void *data)
{
	(void)cpu;
	(void)data;
	if (counts->marks < MARKS)
		counts->at[counts->marks++] = executed;
	if (blocks_write(sections)) {
		perror("counts of blocks cannot be written");
		abort();
	}
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t n = qemu_plugin_tb_n_insns(tb);
	struct qemu_plugin_insn *last = qemu_plugin_tb_get_insn(tb, n - 1);
	uint64_t first = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0));
	int repeats = repeats_itself(qemu_plugin_insn_data(last), qemu_plugin_insn_size(last));
	struct block *block = blocks_add(first, n, repeats ? qemu_plugin_insn_vaddr(last) : 0);

	(void)id;
	qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &executed, n);
	if (!block) {
		fprintf(stderr, "there are more than %d blocks of code\n", BLOCKS);
		abort();
	}
	qemu_plugin_register_vcpu_tb_exec_cb(tb, turn ? executed_in_turn : block_executed,
					     QEMU_PLUGIN_CB_NO_REGS, block);
	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		if (qemu_plugin_insn_size(insn) == MARK_SIZE &&
		    !memcmp(qemu_plugin_insn_data(insn), mark, MARK_SIZE))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, note_mark,
							       QEMU_PLUGIN_CB_NO_REGS, NULL);
	}
}

__attribute__((visibility("default")))
int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv)
{
	const char *out = NULL, *split = NULL;
	int fd;

	(void)info;
	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "out=", 4))
			out = argv[i] + 4;
		if (!strncmp(argv[i], "blocks=", 7))
			split = argv[i] + 7;
		if (!strncmp(argv[i], "turn=", 5))
			turn = strtoll(argv[i] + 5, NULL, 10);
	}
	if (!out || !split) {
		fprintf(stderr, "say where the counts go: out=FILE,blocks=FILE\n");
		return -1;
	}
	fd = open(out, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || ftruncate(fd, sizeof(*counts))) {
		fprintf(stderr, "%s: %s\n", out, strerror(errno));
		return -1;
	}
	counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (counts == MAP_FAILED) {
		fprintf(stderr, "%s: %s\n", out, strerror(errno));
		return -1;
	}
	sections = fopen(split, "we");
	if (!sections || blocks_begin()) {
		fprintf(stderr, "%s: %s\n", split, strerror(errno));
		return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
