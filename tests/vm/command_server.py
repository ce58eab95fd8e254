"""Runs ``stackmap`` commands in one process: a JSON list of arguments a line, a result a line."""

from __future__ import annotations

import json
import sys

from click.testing import CliRunner

from stackmap_cli.main import main

for number, line in enumerate(sys.stdin, 1):
    result = CliRunner().invoke(main, json.loads(line))
    answer = {"returncode": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
    print(number, json.dumps(answer), flush=True)
