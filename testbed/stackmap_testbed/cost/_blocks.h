/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How often each block of code was executed by each processor, for _count_plugin.c; it knows
 * nothing of QEMU.
 *
 * A string instruction with a repeat prefix is one instruction to a processor.  QEMU begins it
 * anew for each repetition: in a block that ends with it, and from then on in one that is only it.
 * Those repetitions are counted apart.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

#define BLOCKS (1 << 23)
#define PROCESSORS 8

struct block {
	uint64_t address;
	uint64_t repeated;	/* address of the repeating instruction that ends it, or 0 */
	uint64_t times[PROCESSORS];
	uint64_t repetitions[PROCESSORS];
	uint32_t instructions;
};

/* The file has a section for each marker, followed by that many records. */
struct section {
	uint64_t records;
};

struct record {
	uint64_t address;
	uint32_t processor;
	uint32_t instructions;
	uint64_t times;
	uint64_t repetitions;	/* each is one instruction, in QEMU's view */
};

static struct block *blocks;
static size_t blocks_known;
static const struct block nothing;
static const struct block *executed_last[PROCESSORS] = {
	[0 ... PROCESSORS - 1] = &nothing,
};

/* Reserve memory for all blocks; it is used as they come.  Returns -1 with errno set. */
static int blocks_begin(void)
{
	void *memory = mmap(NULL, BLOCKS * sizeof(*blocks), PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return -1;
	blocks = memory;
	return 0;
}

/* Returns NULL when there are too many. */
static struct block *blocks_add(uint64_t address, uint32_t instructions, uint64_t repeated)
{
	struct block *block;

	if (blocks_known == BLOCKS)
		return NULL;
	block = &blocks[blocks_known++];
	block->address = address;
	block->instructions = instructions;
	block->repeated = repeated;
	return block;
}

/* Whether an instruction (x86-64) is a string instruction with a repeat prefix. */
static int repeats_itself(const unsigned char *code, size_t size)
{
	int prefixed = 0;
	size_t i = 0;

	for (; i < size; i++) {
		unsigned char byte = code[i];

		if (byte == 0xf2 || byte == 0xf3)
			prefixed = 1;
		else if (byte != 0x66 && byte != 0x67 && byte != 0x2e && byte != 0x36 &&
			 byte != 0x3e && byte != 0x26 && byte != 0x64 && byte != 0x65)
			break;
	}
	if (i < size && (code[i] & 0xf0) == 0x40)	/* REX */
		i++;
	if (!prefixed || i + 1 != size)
		return 0;
	/* ins, outs; movs, cmps; stos, lods, scas */
	return (code[i] >= 0x6c && code[i] <= 0x6f) || (code[i] >= 0xa4 && code[i] <= 0xa7) ||
	       (code[i] >= 0xaa && code[i] <= 0xaf);
}

static void block_executed(unsigned int processor, void *data)
{
	struct block *block = data;

	if (block->repeated == block->address && executed_last[processor]->repeated == block->address)
		block->repetitions[processor]++;
	else
		block->times[processor]++;
	executed_last[processor] = block;
}

/* Write what was executed since the last call.  Returns -1 with errno set. */
static int blocks_write(FILE *file)
{
	struct section section = { 0 };

	for (const struct block *block = blocks; block < blocks + blocks_known; block++)
		for (int i = 0; i < PROCESSORS; i++)
			section.records += block->times[i] || block->repetitions[i];
	if (fwrite(&section, sizeof(section), 1, file) != 1)
		return -1;
	for (struct block *block = blocks; block < blocks + blocks_known; block++)
		for (uint32_t i = 0; i < PROCESSORS; i++) {
			struct record record = {
				block->address, i, block->instructions, block->times[i],
				block->repetitions[i],
			};

			if (!record.times && !record.repetitions)
				continue;
			if (fwrite(&record, sizeof(record), 1, file) != 1)
				return -1;
			block->times[i] = block->repetitions[i] = 0;
		}
	return fflush(file) ? -1 : 0;
}
