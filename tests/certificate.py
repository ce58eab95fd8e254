"""A certificate for tests of TLS on this host."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context, and that of clients which trust it; ``folder`` gets a file."""
    pem = folder / "certificate.pem"
    pem.write_text(CERTIFICATE)
    accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    accepting.load_cert_chain(pem)
    return accepting, ssl.create_default_context(cafile=str(pem))


#: Of "localhost" and 127.0.0.1, valid for a hundred years, and for these tests only.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg+Lm5duGbErmpXJU/
BtkOIXHmnxKINl4EiazOyOZVxIWhRANCAATsfd+R6y4gCCHTXwT5UnL0aDcskJKI
qhBAcEJkP4poOlC+Kk17l9TiJxy92mgWhfuOI4VWqPUCjRxEXbshDTtP
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBnDCCAUGgAwIBAgIUKnBa0hy2TTjeELeXBg3G0kaigD8wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNzIxMjMwNVoYDzIxMjYxMTAz
MjEyMzA1WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAATsfd+R6y4gCCHTXwT5UnL0aDcskJKIqhBAcEJkP4poOlC+Kk17l9Ti
Jxy92mgWhfuOI4VWqPUCjRxEXbshDTtPo28wbTAdBgNVHQ4EFgQUIZLCnr+mHofJ
JC1eIGMFWM3T2dowHwYDVR0jBBgwFoAUIZLCnr+mHofJJC1eIGMFWM3T2dowDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSQAwRgIhAJve0//QvByMBjnZC01TxeErlvDDBdEm3RJeYBjbE/V7AiEA
kaukFsX5BQW5rPDIKUmydxwEzBqLw8ljiSZB2NW99RY=
-----END CERTIFICATE-----
"""
