"""Hold memcached servers to memcached, and put them under pressure; depends on no other room."""
