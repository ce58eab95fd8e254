"""The files of a folder as a function from an HTTP request to its response."""

from __future__ import annotations

import mimetypes
import stat
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from stackmap.codec.http1 import Request, Response

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from stackmap.codec.http1 import Headers

#: Bytes that a file may have: a response is made in memory.
MAX_FILE = 16 << 20
#: Types of compressed files, which are served as they are.
_COMPRESSED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}


class Files:
    """Serves regular files below a folder to GET and HEAD; in a folder it is ``index.html``.

    Nothing outside of the folder is served, neither by ``..`` nor through a symbolic link.  Folders
    are not listed.  A client that has a file's latest version gets 304 (``If-Modified-Since``, RFC
    9110, section 13.1.3).

    Args:
        root: the folder.
        max_file: bytes of the largest file that is served; others are 403.

    Raises:
        OSError: there is no such folder.
    """

    def __init__(self, root: Path, max_file: int = MAX_FILE) -> None:
        self._root = root.resolve(strict=True)
        self._max_file = max_file

    def __call__(self, request: Request, /) -> Response:
        """Answer a request."""
        if request.method not in {"GET", "HEAD"}:
            return refusal(HTTPStatus.METHOD_NOT_ALLOWED, [("Allow", "GET, HEAD")])
        try:
            path = unquote(urlsplit(request.target).path, errors="strict")
            return self._answer(request, path)
        except PermissionError:
            return refusal(HTTPStatus.FORBIDDEN)
        except (ValueError, OSError):  # no URL, a NUL in it, no such file, a name that is too long
            return refusal(HTTPStatus.NOT_FOUND)

    def _answer(self, request: Request, path: str) -> Response:
        if not path.startswith("/"):
            return refusal(HTTPStatus.BAD_REQUEST)
        file = (self._root / path.lstrip("/")).resolve(strict=True)
        if not file.is_relative_to(self._root):
            return refusal(HTTPStatus.NOT_FOUND)
        if file.is_dir():
            if not path.endswith("/"):
                # Links of the page are relative to the folder.  One slash: two begin a host's name.
                where = quote("/" + path.lstrip("/") + "/")
                return refusal(HTTPStatus.MOVED_PERMANENTLY, [("Location", where)])
            file = (file / "index.html").resolve(strict=True)
            if not file.is_relative_to(self._root):
                return refusal(HTTPStatus.NOT_FOUND)
        elif path.endswith("/"):
            return refusal(HTTPStatus.NOT_FOUND)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for its other end
            return refusal(HTTPStatus.NOT_FOUND)
        if status.st_size > self._max_file:
            return refusal(HTTPStatus.FORBIDDEN)
        headers = [("Last-Modified", formatdate(status.st_mtime, usegmt=True)), _date()]
        if _is_unchanged(request, status):
            return Response(HTTPStatus.NOT_MODIFIED, headers)
        return Response(
            HTTPStatus.OK, [("Content-Type", content_type(file)), *headers], file.read_bytes()
        )


def content_type(file: Path) -> str:
    """The media type that a file's name stands for; text is taken to be UTF-8."""
    kind, encoding = mimetypes.guess_type(file.name)
    if encoding is not None:
        return _COMPRESSED.get(encoding, "application/octet-stream")
    if kind is not None and kind.startswith("text/"):
        return f"{kind}; charset=utf-8"
    return kind or "application/octet-stream"


def refusal(status: HTTPStatus, headers: Headers = ()) -> Response:
    """A response that says no more than its status."""
    kind = ("Content-Type", "text/plain; charset=utf-8")
    return Response(status, [kind, _date(), *headers], f"{status.value} {status.phrase}\n".encode())


def _date() -> tuple[str, str]:
    return "Date", formatdate(usegmt=True)


def _is_unchanged(request: Request, status: os.stat_result) -> bool:
    since = request.header("if-modified-since")
    if since is None:
        return False
    try:
        return int(status.st_mtime) <= parsedate_to_datetime(since).timestamp()
    except ValueError:  # that is no date, so the header does not count
        return False
