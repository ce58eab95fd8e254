"""Complaints in a kernel log."""

from __future__ import annotations

import pytest

from stackmap_testbed.lab.kernel_log import offending_lines, parse_record

COMPLAINTS = [
    "BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "WARNING: CPU: 0 PID: 1 at net/ipv4/tcp.c:3011 tcp_recvmsg+0x1/0x2",
    "Oops: 0002 [#1] PREEMPT SMP",
    "invalid opcode: 0000 [#1] PREEMPT SMP NOPTI",
    "general protection fault, probably for non-canonical address",
    "WARNING: possible circular locking dependency detected",
    "WARNING: suspicious RCU usage",
    "WARNING: inconsistent lock state",
    "rcu: INFO: rcu_preempt self-detected stall on CPU",
    "rcu_sched detected stalls on CPUs/tasks:",
    "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [python:12]",
    "unreferenced object 0xffff888003a5d000 (size 64):",
    "refcount_t: underflow; use-after-free.",
    "Call Trace:",
    "BUG: KASAN: slab-use-after-free in sm_rx+0x10/0x20 [stackmap]",
    "UBSAN: array-index-out-of-bounds in tx.c:10:2",
    "INFO: task python:99 blocked for more than 120 seconds.",
    "unregister_netdevice: waiting for eth0 to become free. Usage count = 2",
    "BUG skbuff_head_cache (Tainted: G): Objects remaining in skbuff_head_cache",
    "Kernel panic - not syncing: Fatal exception in interrupt",
    "WARNING: pool.c:7 module stackmap func:sm_pool has 4096 allocated at module unload",
    "BUG: KCSAN: data-race in sm_rx [stackmap] / sm_tx [stackmap]",
    "[  139.900174] kmemleak: Kernel memory leak detector disabled",
    "[  139.900174] kmemleak: Cannot allocate a kmemleak_object structure",
    "[   12.000000] ODEBUG: Out of memory. ODEBUG disabled",
    "turning off the locking correctness validator.",
]
ORDINARY = [
    'PCI: Using host bridge windows from ACPI; if necessary, use "pci=nocrs" and report a bug',
    "stackmap: loading out-of-tree module taints kernel.",
    "kfence: initialized - using 2097152 bytes for 255 objects",
    "KernelAddressSanitizer initialized",
    "kmemleak: Kernel memory leak detector initialized (mem pool available: 15625)",
    "kmemleak: Kernel memory leak detector disabled",
    "[    0.000000] kmemleak: Kernel memory leak detector disabled",
    "rcu: Hierarchical RCU implementation.",
    "Kernel command line: console=ttyS0 panic=-1",
    "Spectre V2 : Mitigation: Retpolines",
]


@pytest.mark.parametrize("line", COMPLAINTS)
def test_complaints_are_found(line: str) -> None:
    assert offending_lines([line]) == [line]


def test_ordinary_lines_are_not() -> None:
    assert offending_lines(ORDINARY) == []


def test_a_record_is_read_with_its_number_and_time() -> None:
    record = "6,339,5140900,-;stackmap: ready\n SUBSYSTEM=net\n"
    assert parse_record(record) == (339, "[    5.140900] stackmap: ready")
