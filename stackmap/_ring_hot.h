/*
 * The hot calls of ports on rings.  Only the extension (_fast*.c) makes them: through cffi they cost
 * several times as much, see docs/measuring.md.
 */

size_t smr_write(struct smr_pair *pair, uint32_t id, const char *data, size_t len);
uint32_t smr_send_buffer(struct smr_pair *pair, uint32_t id, uint32_t buf, uint32_t offset,
			 uint32_t len);
void smr_keep(const struct smr_pair *pair, uint32_t slot, uint32_t spare);
int smr_report(const struct smr_pair *pair, uint32_t id);
void smr_help_send(struct smr_pair *pair);
int64_t smr_deadline(double timeout);
int smr_exchange(struct smr_pair *pair, int64_t deadline);
