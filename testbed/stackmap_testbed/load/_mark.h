/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A no-operation that does nothing in a machine and can be seen from outside of it: a multi-byte
 * NOP (x86-64) whose displacement nobody else uses.
 */
#define MARK_BYTES 0x0f, 0x1f, 0x84, 0x00, 0x4d, 0x53, 0x7a, 0x5a
#define MARK_SIZE 8
