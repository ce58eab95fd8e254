"""Where stackmap is tried and measured, in rooms; ``tests/unit/test_layers.py`` keeps their order.

=============  ========================================================  ===================
room           what it is for                                            depends on
=============  ========================================================  ===================
``lab``        machines and the wire between them
``load``       the load generator
``memcached``  memcached servers: conformance, and memory under pressure
``cost``       counting the instructions of a request                    ``lab``, ``load``
``comparison`` rings against sockets, by the clock                       ``lab``, ``load``
=============  ========================================================  ===================

Nothing is imported here, nor by a room itself: parts of them run inside the guests, where each
import costs time.
"""
