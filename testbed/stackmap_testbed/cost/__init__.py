"""Count the instructions of a request on rings and on epoll; depends on ``lab`` and ``load``."""
