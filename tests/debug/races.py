"""Find complaints in the log of a kernel that looks for data races.

Linux has races of its own, and KCSAN finds some: those with the module in them count.
"""

from __future__ import annotations

from stackmap_testbed.lab.kernel_log import offending_lines

#: Before and after each of KCSAN's reports, as of KASAN's.
_RULE = "=" * 66
_RACE = "BUG: KCSAN:"


def complaints(log: str, module: str = "stackmap") -> list[str]:
    """Races that the module takes part in, and whatever else the kernel complains of."""
    found = []
    for section in log.split(_RULE):
        race = _RACE in section
        if race and f"[{module}]" in section:
            found.append(section)
        else:
            lines = offending_lines(section.splitlines())
            found += [line for line in lines if not race or _RACE not in line]
    return found
