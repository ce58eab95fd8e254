"""Why a service did not answer."""

from __future__ import annotations


class ServiceError(Exception):
    """A request failed for a reason that this package has a name for."""


class RejectedError(ServiceError):
    """The request was turned away before any work was done: it is safe to send it again."""


class DeadlineExceededError(ServiceError, TimeoutError):
    """The request's deadline had passed before any work was done."""


class UnauthenticatedError(ServiceError):
    """It is not known on whose behalf the request is made."""


class ServiceClosedError(RejectedError):
    """The service is closed, and takes no more requests."""


class NotConnectedError(RejectedError, ConnectionError):
    """No connection to the service could be made: nothing was sent."""


class ConnectionLostError(ServiceError, ConnectionError):
    """The connection ended before the reply came: whether the request was served is unknown."""
