"""Where the lab keeps what must not outlive this boot of the machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def runtime_directory() -> Path:
    """Return the directory for run-time state, created for this user alone."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), "/run"):
        if base and os.access(base, os.W_OK):
            directory = Path(base) / "stackmap"
            break
    else:
        directory = Path(tempfile.gettempdir()) / f"stackmap-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory
