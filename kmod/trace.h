/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Tracepoints, in tracefs under events/stackmap.  port is the mem_id that netlink shows too.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM stackmap

#if !defined(_SM_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _SM_TRACE_H

#include <linux/tracepoint.h>

#include "uapi/stackmap.h"

/* Only trace.c looks into these. */
struct sm_conn;
struct sm_rings;

#define sm_show_slot_flags(flags)			\
	__print_flags(flags, "|",			\
		      { SM_SLOT_EOF, "EOF" },		\
		      { SM_SLOT_ERROR, "ERROR" },	\
		      { SM_SLOT_WRITABLE, "WRITABLE" },	\
		      { SM_SLOT_CLOSED, "CLOSED" },	\
		      { SM_SLOT_OPEN, "OPEN" },		\
		      { SM_SLOT_ACKED, "ACKED" })

/* Slots of one connection went to TCP in one send; result is the bytes that it took, or -errno. */
TRACE_EVENT(sm_send, TP_PROTO(const struct sm_conn *conn, u32 slots, u32 bytes, int result),
	    TP_ARGS(conn, slots, bytes, result),
	    TP_STRUCT__entry(__field(u16, port)
			     __field(u32, ring)
			     __field(u32, conn)
			     __field(u32, slots)
			     __field(u32, bytes)
			     __field(int, result)),
	    TP_fast_assign(__entry->port = conn->port->base.mem_id;
			   __entry->ring = conn->pair->rings.index;
			   __entry->conn = conn->id;
			   __entry->slots = slots;
			   __entry->bytes = bytes;
			   __entry->result = result;),
	    TP_printk("port=%u ring=%u conn=%u slots=%u bytes=%u result=%d", __entry->port,
		      __entry->ring, __entry->conn, __entry->slots, __entry->bytes,
		      __entry->result));

/* TCP holds these buffers. */
TRACE_EVENT_CONDITION(sm_pin, TP_PROTO(const struct sm_conn *conn, u32 bufs),
		      TP_ARGS(conn, bufs),
		      TP_CONDITION(bufs),
		      TP_STRUCT__entry(__field(u16, port)
				       __field(u32, ring)
				       __field(u32, conn)
				       __field(u32, bufs)),
		      TP_fast_assign(__entry->port = conn->port->base.mem_id;
				     __entry->ring = conn->pair->rings.index;
				     __entry->conn = conn->id;
				     __entry->bufs = bufs;),
		      TP_printk("port=%u ring=%u conn=%u bufs=%u", __entry->port,
				__entry->ring, __entry->conn, __entry->bufs));

/* The last skb that held these buffers is gone: they were acknowledged, or never will be. */
TRACE_EVENT_CONDITION(sm_release, TP_PROTO(const struct sm_conn *conn, u32 bufs, bool acked),
		      TP_ARGS(conn, bufs, acked),
		      TP_CONDITION(bufs),
		      TP_STRUCT__entry(__field(u16, port)
				       __field(u32, ring)
				       __field(u32, conn)
				       __field(u32, bufs)
				       __field(bool, acked)),
		      TP_fast_assign(__entry->port = conn->port->base.mem_id;
				     __entry->ring = conn->pair->rings.index;
				     __entry->conn = conn->id;
				     __entry->bufs = bufs;
				     __entry->acked = acked;),
		      TP_printk("port=%u ring=%u conn=%u bufs=%u by=%s", __entry->port,
				__entry->ring, __entry->conn, __entry->bufs,
				__entry->acked ? "ack" : "reset"));

/* Payload was moved from TCP into the receive ring. */
TRACE_EVENT(sm_receive, TP_PROTO(const struct sm_conn *conn, u32 bytes),
	    TP_ARGS(conn, bytes),
	    TP_STRUCT__entry(__field(u16, port)
			     __field(u32, ring)
			     __field(u32, conn)
			     __field(u32, bytes)),
	    TP_fast_assign(__entry->port = conn->port->base.mem_id;
			   __entry->ring = conn->pair->rings.index;
			   __entry->conn = conn->id;
			   __entry->bytes = bytes;),
	    TP_printk("port=%u ring=%u conn=%u bytes=%u", __entry->port, __entry->ring,
		      __entry->conn, __entry->bytes));

/* An event was put into the receive ring. */
TRACE_EVENT(sm_event, TP_PROTO(const struct sm_conn *conn, u8 flags, u8 err),
	    TP_ARGS(conn, flags, err),
	    TP_STRUCT__entry(__field(u16, port)
			     __field(u32, ring)
			     __field(u32, conn)
			     __field(u8, flags)
			     __field(u8, err)),
	    TP_fast_assign(__entry->port = conn->port->base.mem_id;
			   __entry->ring = conn->pair->rings.index;
			   __entry->conn = conn->id;
			   __entry->flags = flags;
			   __entry->err = err;),
	    TP_printk("port=%u ring=%u conn=%u flags=%s errno=%u", __entry->port, __entry->ring,
		      __entry->conn, sm_show_slot_flags(__entry->flags), __entry->err));

/* A transmit slot was refused; conn is the application's number, unchecked. */
TRACE_EVENT(sm_refuse, TP_PROTO(const struct sm_rings *rings, u32 slot, u32 conn, int err),
	    TP_ARGS(rings, slot, conn, err),
	    TP_STRUCT__entry(__field(u16, port)
			     __field(u32, ring)
			     __field(u32, slot)
			     __field(u32, conn)
			     __field(int, err)),
	    TP_fast_assign(__entry->port = rings->port->mem_id;
			   __entry->ring = rings->index;
			   __entry->slot = slot;
			   __entry->conn = conn;
			   __entry->err = err;),
	    TP_printk("port=%u ring=%u slot=%u conn=%u errno=%d", __entry->port, __entry->ring,
		      __entry->slot, __entry->conn, __entry->err));

#endif /* _SM_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
