"""The load generator, a memcached client that checks every byte; depends on no other room."""
