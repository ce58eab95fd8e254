"""Complaints in the log of a kernel that looks for data races."""

from __future__ import annotations

from tests.debug.races import complaints

RULE = f"[   20.1] {'=' * 66}\n"


def race(first: str, second: str) -> str:
    return f"""{RULE}[   20.1] BUG: KCSAN: data-race in {first} / {second}

[   20.1] write to 0xffffffff823f4a18 of 8 bytes by task 77 on cpu 0:
[   20.1]  {first}+0x3b/0x90
[   20.1]  ksys_ioctl+0x2b/0x70
{RULE}"""


def test_a_race_of_linux_alone_does_not_count() -> None:
    assert complaints("booted\n" + race("tick_sched", "timekeeping") + "more\n") == []


def test_a_race_with_the_module_counts() -> None:
    log = race("tick_sched", "jiffies") + race("tcp_ack", "sm_rx [stackmap]")
    (found,) = complaints(log)
    assert "data-race in tcp_ack / sm_rx [stackmap]" in found


def test_other_complaints_count_within_a_report_and_outside() -> None:
    inside = race("tick_sched", "jiffies").replace("ksys", "WARNING: CPU: 1 PID: 5 at ksys")
    log = "[   19.0] WARNING: suspicious RCU usage\n" + inside
    first, second = complaints(log)
    assert "suspicious" in first
    assert "CPU: 1" in second
