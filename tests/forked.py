"""Runs files of tests, one after the other, inside a guest: ``python -m tests.forked OPTION...``.

Loading pytest takes an emulated machine a quarter of a minute, and one full of checks a whole.  So
it is loaded once, with options that all files share, and a process is forked from that for each.
:mod:`tests.inside` talks to it.
"""

from __future__ import annotations

import json
import os
import sys

import pytest

import stackmap  # noqa: F401 (what all tests load)


def main() -> None:
    """Serve requests, one JSON object a line, until the input ends."""
    options = sys.argv[1:]
    pytest.main([*options, "--version"])  # loads the plugins as well
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
