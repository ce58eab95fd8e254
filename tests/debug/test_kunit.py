"""The module's own tests, which it runs when a debug kernel loads it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tests.debug.uml import Options, run_in_uml

if TYPE_CHECKING:
    from tests.debug.kernels import DebugKernel

#: A line of KTAP after the kernel's time stamp; results of suites are not indented.
RESULT = re.compile(r"^(?:\[[^]]*\] )?\s*(not )?ok \d+ (.*)$", re.MULTILINE)


def test_module_tests_pass(uml: DebugKernel) -> None:
    report = run_in_uml(uml, ["true"], Options(leaks=True))
    report.check()
    results = RESULT.findall(report.console)
    assert results, "the module ran no tests"
    unhappy = [name for failed, name in results if failed or "# SKIP" in name]
    assert not unhappy, report.console
