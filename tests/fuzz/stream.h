/* SPDX-License-Identifier: GPL-2.0 */
/* Bytes that follow from their position in a stream, so that each can be checked alone. */
#ifndef STREAM_H
#define STREAM_H

#include <stdint.h>
#include <string.h>

#include "fuzz.h"

static inline uint64_t stream_word(uint64_t key, uint64_t number)
{
	return mix64(key + number * 0x9e3779b97f4a7c15ULL);
}

static inline void stream_fill(uint64_t key, uint64_t position, uint8_t *to, size_t size)
{
	while (size) {
		uint64_t word = stream_word(key, position / 8);
		size_t skip = position % 8, n = 8 - skip < size ? 8 - skip : size;

		memcpy(to, (uint8_t *)&word + skip, n);
		to += n;
		position += n;
		size -= n;
	}
}

/* The position of the first wrong byte; UINT64_MAX if all are right. */
static inline uint64_t stream_check(uint64_t key, uint64_t position, const uint8_t *from,
				    size_t size)
{
	while (size) {
		uint64_t word = stream_word(key, position / 8);
		size_t skip = position % 8, n = 8 - skip < size ? 8 - skip : size;

		if (memcmp(from, (uint8_t *)&word + skip, n)) {
			for (size_t i = 0; i < n; i++)
				if (from[i] != ((uint8_t *)&word)[skip + i])
					return position + i;
		}
		from += n;
		position += n;
		size -= n;
	}
	return UINT64_MAX;
}

#endif
