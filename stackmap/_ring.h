/* Ports on rings, as cffi sees them.  Functions return -errno where they can fail. */

#define SMR_SMALL 512
#define SMR_UNLIMITED 0xffffffff
#define SMR_STAGING_START 2
/* The part of struct smr_segment's start that is the offset in the buffer. */
#define SMR_OFFSET 0xffff
#define SMR_WATCHED 16
/* Who is in a pair: nobody; a thread sends, exchanges or closes it; another sends for its own. */
#define SMR_FREE 0
#define SMR_BUSY 1
#define SMR_HELPED 2
/* Deadlines in nanoseconds of CLOCK_MONOTONIC, and these two: */
#define SMR_AT_ONCE 0
#define SMR_FOREVER -1

/* An open port: the memory that its rings share. */
struct smr_port {
	int fd;
	char *mem;
	size_t size;
	const struct sm_state *states;
	size_t states_size;
	uint32_t records;
	const struct sm_if *nifp;
};

/* What a port is asked to have (0: the default), and then has. */
struct smr_sizes {
	uint32_t rings;
	uint32_t tx_slots;
	uint32_t rx_slots;
	uint32_t spare_buffers;
	uint32_t connections;
	uint32_t extra_buffers;
	uint32_t limit;			/* enum sm_limit: which one it was that opening failed at */
};

/*
 * One received slot, or one refused transmit slot.  Payload of up to SMR_SMALL received bytes is
 * copied to the staging area, where start is its position: for so few bytes a copy costs less
 * than lending the buffer.  For more, start is the offset in the buffer and, 16 bits up, the
 * number of the slot.
 */
struct smr_segment {
	uint32_t id;
	uint32_t start;
	uint32_t buf;
	uint16_t len;
	uint8_t flags;
	uint8_t err;
};

/* A pair of rings.  The arrays are the caller's, and have room for all slots of their ring. */
struct smr_pair {
	const struct smr_port *port;
	int fd;
	int epoll;			/* waits for fd and for the watched files */
	int busy;			/* SMR_FREE, SMR_BUSY or SMR_HELPED */
	struct sm_ring *tx;
	struct sm_ring *rx;
	uint32_t tx_head;		/* next transmit slot to fill */
	uint32_t tx_synced;		/* first slot that was not synced yet */
	uint32_t rx_seen;		/* slots before this one have been handed out */
	uint32_t spin_us;		/* NIC polling in a sync that finds nothing */
	uint32_t watch_countdown;	/* syncs until the watched files are looked at */
	int quiet;			/* little comes, and it is waited for */
	struct smr_segment *received;
	char *staging;			/* filled from SMR_STAGING_START on */
	struct smr_segment *refused;
	/* [0] staged bytes, [1] refused, until the caller sets it to 0, [2] watched files ready */
	int32_t *found;
	int32_t *watched;		/* SMR_WATCHED descriptors */
};

struct smr_attached {
	uint32_t ring;			/* the one wanted, or SM_RING_ANY; then the one given */
	uint32_t id;
	uint32_t record;
};

struct smr_stats {
	uint64_t rx_bytes, tx_bytes, rx_slots, slots_sent, slots_released_ack;
	uint64_t slots_released_reset, slots_pinned, slots_again, bad_slots, unknown_conn;
	uint64_t dead_conn, bad_rings, ring_stalls, syncs, direct_packets, direct_received;
	uint64_t connections, bufs_free;
};

int smr_open(struct smr_port *port, const char *device, const char *name, struct smr_sizes *sizes);
void smr_close(struct smr_port *port);
int smr_open_pair(struct smr_pair *pair, const struct smr_port *port, uint32_t index);
int smr_enter(struct smr_pair *pair);
void smr_leave(struct smr_pair *pair);
void smr_close_pair(struct smr_pair *pair);
int smr_attach(const struct smr_port *port, int fd, int listener, struct smr_attached *attached);
int smr_detach(const struct smr_port *port, uint32_t id);
int smr_grant(const struct smr_port *port, uint32_t id, uint32_t slots);
int smr_pause(const struct smr_port *port, uint32_t id, int paused);
int smr_stats(const struct smr_port *port, struct smr_stats *stats);
int smr_state(const struct smr_port *port, uint32_t record, uint32_t id, struct sm_state *state);
char *smr_buffer(const struct smr_pair *pair, uint32_t buf);
size_t smr_unsynced(const struct smr_pair *pair, uint32_t id);
int smr_send(struct smr_pair *pair);
int smr_send_entered(struct smr_pair *pair);
