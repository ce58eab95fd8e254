"""Servers as functions: services, filters, and what runs them.

After M. Eriksen, "Your Server as a Function", PLOS 2013.  A :class:`Service` is an ``async``
function from a request to a reply; a :class:`Filter` stands before one, and ``and_then`` joins
them; :func:`serve` gives a service to the network, and :class:`Client` is one from there.  All of
it runs on any event loop of asyncio, and moves its payload on rings where that loop's transports
do (``stackmap.aio.EventLoop``).  See docs/services.md.
"""

from ._auth import Auth, Authenticated
from ._background import background
from ._budget import RetryBudget
from ._classify import ResponseClass, ResponseClassifier, classify
from ._client import Client, connect
from ._deadline import Deadline, current_deadline
from ._errors import (
    ConnectionLostError,
    DeadlineExceededError,
    NotConnectedError,
    RejectedError,
    ServiceClosedError,
    ServiceError,
    UnauthenticatedError,
)
from ._factory import ServiceFactory, per_connection
from ._filter import AnyFilter, Filter, SimpleFilter, choose, identity
from ._framed import Framed
from ._hedge import Hedge, Percentile
from ._limit import ConcurrencyLimit
from ._logging import Logging
from ._mask import MaskCancel
from ._monitor import Monitor, Rescue
from ._notify import notify
from ._peer import Peer, current_peer
from ._rate import RateLimit
from ._retry import Backoff, Retry
from ._run import drain_on_signals, on_first_signal, on_first_signal_in_loop, run
from ._server import Server, serve
from ._service import (
    ClosableService,
    ReadyService,
    Service,
    Status,
    Waiter,
    close,
    const,
    make_service,
    pending,
    ready,
    status_of,
    wait_ready,
)
from ._shed import LoadShed
from ._stats import Stats
from ._timeout import Timeout
from ._trace import Span, Trace, current_span

__all__ = [
    "AnyFilter",
    "Auth",
    "Authenticated",
    "Backoff",
    "Client",
    "ClosableService",
    "ConcurrencyLimit",
    "ConnectionLostError",
    "Deadline",
    "DeadlineExceededError",
    "Filter",
    "Framed",
    "Hedge",
    "LoadShed",
    "Logging",
    "MaskCancel",
    "Monitor",
    "NotConnectedError",
    "Peer",
    "Percentile",
    "RateLimit",
    "ReadyService",
    "RejectedError",
    "Rescue",
    "ResponseClass",
    "ResponseClassifier",
    "Retry",
    "RetryBudget",
    "Server",
    "Service",
    "ServiceClosedError",
    "ServiceError",
    "ServiceFactory",
    "SimpleFilter",
    "Span",
    "Stats",
    "Status",
    "Timeout",
    "Trace",
    "UnauthenticatedError",
    "Waiter",
    "background",
    "choose",
    "classify",
    "close",
    "connect",
    "const",
    "current_deadline",
    "current_peer",
    "current_span",
    "drain_on_signals",
    "identity",
    "make_service",
    "notify",
    "on_first_signal",
    "on_first_signal_in_loop",
    "pending",
    "per_connection",
    "ready",
    "run",
    "serve",
    "status_of",
    "wait_ready",
]
