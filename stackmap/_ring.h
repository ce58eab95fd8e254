/* The hot loops of RingPort: what cffi sees.  Functions return -errno where they can fail. */

#define SMR_SMALL 512
#define SMR_STAGING_START 2
#define SMR_WATCHED 16

/*
 * One received slot, or one refused transmit slot.  Payload of up to SMR_SMALL received bytes is
 * copied to the staging area, where start is its position: for so few bytes a copy costs less
 * than lending the buffer.  For more, start is the offset in the buffer.
 */
struct smr_segment {
	uint32_t id;
	uint32_t start;
	uint32_t buf;
	uint16_t len;
	uint8_t flags;
	uint8_t err;
};

/* An open port.  The arrays are the caller's, and have room for all slots of their ring. */
struct smr_port {
	int fd;
	int epoll;			/* waits for fd and for the watched files */
	char *mem;
	size_t size;
	struct sm_ring *tx;
	struct sm_ring *rx;
	uint32_t tx_head;		/* next transmit slot to fill */
	uint32_t tx_synced;		/* first slot that was not synced yet */
	uint32_t rx_seen;		/* slots before this one have been handed out */
	uint32_t spin_us;		/* NIC polling in a sync that finds nothing */
	uint32_t watch_countdown;	/* syncs until the watched files are looked at */
	int quiet;			/* the port was found readable by waiting */
	struct smr_segment *received;
	char *staging;			/* filled from SMR_STAGING_START on */
	struct smr_segment *refused;
	int32_t *found;			/* [0] staged bytes, [1] refused, [2] watched files ready */
	int32_t *watched;		/* SMR_WATCHED descriptors */
};

struct smr_stats {
	uint64_t rx_bytes, tx_bytes, rx_slots, slots_sent, slots_released_ack;
	uint64_t slots_released_reset, slots_pinned, slots_again, bad_slots, unknown_conn;
	uint64_t dead_conn, bad_rings, ring_stalls, syncs, connections, bufs_free;
};

int smr_open(struct smr_port *port, const char *device, const char *name, uint32_t tx_slots,
	     uint32_t rx_slots);
void smr_close(struct smr_port *port);
int smr_attach(struct smr_port *port, int fd, uint32_t *id);
int smr_detach(struct smr_port *port, uint32_t id);
int smr_pause(struct smr_port *port, uint32_t id, int paused);
int smr_stats(struct smr_port *port, struct smr_stats *stats);
char *smr_buffer(struct smr_port *port, uint32_t buf);
size_t smr_write(struct smr_port *port, uint32_t id, const char *data, size_t len);
int smr_send(struct smr_port *port);
int smr_exchange(struct smr_port *port, int timeout_ms);
