"""Runs files of tests, one after the other, inside a guest: ``python -m tests.forked OPTION...``.

Loading pytest takes an emulated machine a quarter of a minute, and one full of checks a whole.  So
it is loaded once, with options that all files share, and a process is forked from that for each.
:mod:`tests.inside` talks to it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys

import pytest

import tests.guest.conftest  # noqa: F401 (and what all tests load with it)


def main() -> None:
    """Serve requests, one JSON object a line, until the input ends."""
    options = sys.argv[1:]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        pytest.main([*options, "--markers"])  # loads the plugins
    # Loaded modules are not garbage.  Each collection, and the end of each process, would visit all
    # of them and so copy their pages, which took longer than anything else but the tests.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.flush()
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
            os.environ.update(request["environment"])
            sys.exit(pytest.main([*options, *request["options"]]))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(f"run {request['run']} ended with {status}", flush=True)


if __name__ == "__main__":
    main()
