"""The items: their order, their bound, their time."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackmap.memcached.store import (
    EXISTS,
    ITEM_OVERHEAD,
    NO_MEMORY,
    NOT_FOUND,
    NOT_STORED,
    STORED,
    Store,
    item_fits,
)

DAY = 24 * 3600


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Kit:
    """A store and its clock."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.clock = Clock()
        self.store = Store(limit, self.clock)

    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        self.store.tick()

    def value(self, key: bytes) -> bytes | None:
        item = self.store.get(key)
        return None if item is None else bytes(item.value)


@pytest.fixture
def kit() -> Kit:
    return Kit()


def test_storage_commands(kit: Kit) -> None:
    store = kit.store
    assert store.replace(b"k", 0, 0, b"1") == NOT_STORED
    assert store.append(b"k", b"1") == NOT_STORED
    assert store.add(b"k", 5, 0, b"1") == STORED
    assert store.add(b"k", 6, 0, b"2") == NOT_STORED
    assert store.append(b"k", b"2") == STORED
    assert store.prepend(b"k", b"0") == STORED
    item = store.get(b"k")
    assert item is not None
    assert (item.value, item.flags, item.header) == (b"012", 5, b" 5 3\r\n")
    assert store.replace(b"k", 7, 0, b"x") == STORED
    assert store.delete(b"k")
    assert not store.delete(b"k")
    assert store.bytes == 0


def test_cas(kit: Kit) -> None:
    store = kit.store
    assert store.compare_and_set(b"k", 0, 0, 1, b"x") == NOT_FOUND
    store.set(b"k", 0, 0, b"a")
    first = store.get(b"k")
    assert first is not None
    store.set(b"k", 0, 0, b"a")
    assert store.compare_and_set(b"k", 0, 0, first.cas, b"x") == EXISTS
    second = store.get(b"k")
    assert second is not None
    assert store.compare_and_set(b"k", 0, 0, second.cas, b"x") == STORED
    assert kit.value(b"k") == b"x"
    assert (store.counters.cas_hits, store.counters.cas_badval, store.counters.cas_misses) == (
        1, 1, 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "delta", "down", "number", "value"),
    [
        (b"10", 1, True, 9, b"9 "),
        (b"10", 11, True, 0, b"0 "),
        (b"99", 1, False, 100, b"100"),
        (b"18446744073709551615", 1, False, 0, b"0" + b" " * 19),
        (b" 12", 1, False, 13, b"13 "),
        (b"1", 2**64 - 1, False, 0, b"0"),
    ],
)
def test_counting(
    kit: Kit, old: bytes, delta: int, *, down: bool, number: int, value: bytes
) -> None:
    kit.store.set(b"n", 3, 0, old)
    assert kit.store.count(b"n", delta, down=down) == number
    assert kit.value(b"n") == value
    item = kit.store.get(b"n")
    assert item is not None
    assert item.flags == 3


def test_counting_what_is_no_number(kit: Kit) -> None:
    assert kit.store.count(b"n", 1, down=False) is None
    assert kit.store.count(b"n", 1, down=True) is None
    for value in (b"", b"abc", b"-1", b"18446744073709551616"):
        kit.store.set(b"n", 0, 0, value)
        with pytest.raises(ValueError, match="not a number"):
            kit.store.count(b"n", 1, down=False)


# -- time --


def test_exptimes(kit: Kit) -> None:
    now = int(kit.clock.now)
    for key, exptime in (
        (b"never", 0),
        (b"soon", 10),
        (b"month", 30 * DAY),
        (b"absolute", now + 40 * DAY),
        (b"past", 30 * DAY + 1),
        (b"negative", -1),
    ):
        kit.store.set(key, 0, exptime, b"v")

    def alive() -> set[bytes]:
        keys = (b"never", b"soon", b"month", b"absolute", b"past", b"negative")
        return {key for key in keys if kit.value(key) is not None}

    assert alive() == {b"never", b"soon", b"month", b"absolute"}
    kit.wait(9)
    assert b"soon" in alive()
    kit.wait(1)
    assert alive() == {b"never", b"month", b"absolute"}
    kit.wait(30 * DAY)
    assert alive() == {b"never", b"absolute"}
    kit.wait(10 * DAY)
    assert alive() == {b"never"}
    assert kit.store.bytes == 5 + 1 + ITEM_OVERHEAD
    assert kit.store.counters.get_expired == 5


def test_an_expired_item_is_no_item(kit: Kit) -> None:
    store = kit.store

    def expired() -> None:
        store.set(b"k", 0, 1, b"1")
        kit.wait(2)

    expired()
    assert store.add(b"k", 0, 0, b"new") == STORED
    expired()
    assert store.replace(b"k", 0, 0, b"x") == NOT_STORED
    expired()
    assert store.append(b"k", b"x") == NOT_STORED
    expired()
    assert store.count(b"k", 1, down=False) is None
    expired()
    assert store.touch(b"k", 100) is None
    expired()
    assert not store.delete(b"k")
    assert len(store) == 0


def test_touching(kit: Kit) -> None:
    kit.store.set(b"k", 0, 5, b"v")
    assert kit.store.touch(b"k", 100) is not None
    kit.wait(50)
    assert kit.value(b"k") == b"v"
    assert kit.store.touch(b"k", 0) is not None
    kit.wait(100 * DAY)
    assert kit.value(b"k") == b"v"


def test_flushing(kit: Kit) -> None:
    kit.store.set(b"k", 0, 0, b"v")
    kit.store.flush(10)
    assert kit.value(b"k") == b"v"
    kit.wait(9)
    assert kit.value(b"k") == b"v"
    kit.wait(1)
    assert kit.value(b"k") is None
    kit.store.set(b"k", 0, 0, b"v")
    kit.wait(100)
    assert kit.value(b"k") == b"v"
    kit.store.flush(10)
    kit.store.flush(0)
    assert kit.value(b"k") is None
    kit.store.set(b"k", 0, 0, b"v")
    kit.wait(100)
    assert kit.value(b"k") == b"v"


# -- the bound --


def test_the_least_recently_used_go_first() -> None:
    kit = Kit(limit=10 * (ITEM_OVERHEAD + 101))
    for number in range(10):
        kit.store.set(b"%d" % number, 0, 0, b"v" * 100)
    assert len(kit.store) == 10
    kit.store.get(b"0")
    kit.store.touch(b"1", 0)
    kit.store.add(b"2", 0, 0, b"")
    kit.store.set(b"3", 0, 0, b"w" * 100)
    for number in range(10, 16):
        kit.store.set(b"%d" % number, 0, 0, b"v" * 99)
    assert {n for n in range(16) if kit.value(b"%d" % n)} == {0, 1, 2, 3, *range(10, 16)}
    assert kit.store.counters.evictions == 6


@pytest.mark.parametrize("look_up", ["get", "hit"])
def test_an_item_that_is_retrieved_moves_once_a_second(look_up: str) -> None:
    kit = Kit()
    retrieve = getattr(kit.store, look_up)
    for key in (b"a", b"b", b"a"):
        kit.store.set(key, 0, 0, b"v")
    for key in (b"a", b"b", b"a"):
        assert retrieve(key) is not None
    assert kit.store.newest(2) == [b"b", b"a"]
    kit.wait(1)
    assert retrieve(b"a") is not None
    assert kit.store.newest(2) == [b"a", b"b"]


def test_growing_an_item_evicts_others_not_itself() -> None:
    kit = Kit(limit=3 * (ITEM_OVERHEAD + 101))
    for key in (b"a", b"b", b"c"):
        kit.store.set(key, 0, 0, b"v" * 100)
    assert kit.store.append(b"a", b"w" * 100) == STORED
    assert kit.value(b"a") == b"v" * 100 + b"w" * 100
    assert kit.value(b"b") is None
    assert kit.value(b"c") is not None


def test_a_host_larger_than_the_memory() -> None:
    kit = Kit(limit=1000)
    kit.store.set(b"k", 0, 0, b"v")
    assert kit.store.set(b"k", 0, 0, b"v" * 1000) == NO_MEMORY
    assert kit.value(b"k") is None
    assert kit.store.bytes == 0
    assert kit.store.counters.store_no_memory == 1


def test_changing_the_limit() -> None:
    kit = Kit()
    for number in range(100):
        kit.store.set(b"%d" % number, 0, 0, b"v" * 100)
    kit.store.set_limit(10 * (ITEM_OVERHEAD + 102))
    assert len(kit.store) == 10
    assert kit.store.newest(3) == [b"99", b"98", b"97"]


keys = st.sampled_from([b"a", b"bb", b"ccc", b"dddd", b"eeeee"])
sizes = st.integers(0, 600)
operations = st.one_of(
    st.tuples(st.sampled_from(["set", "add", "replace"]), keys, sizes, st.sampled_from([0, 5])),
    st.tuples(st.sampled_from(["append", "get", "touch", "delete", "wait"]), keys, sizes,
              st.just(0)),
)  # fmt: skip


@given(st.lists(operations, max_size=60))
def test_bytes_are_what_the_items_take(steps: list[tuple[str, bytes, int, int]]) -> None:
    kit = Kit(limit=2000)
    store = kit.store
    for verb, key, size, exptime in steps:
        if verb in {"set", "add", "replace"}:
            getattr(store, verb)(key, 0, exptime, b"v" * size)
        elif verb == "append":
            store.append(key, b"v" * size)
        elif verb == "touch":
            store.touch(key, size)
        elif verb == "wait":
            kit.wait(size % 7)
        else:
            getattr(store, verb)(key)
        taken = sum(len(k) + len(i.value) + ITEM_OVERHEAD for k, i in store._items.items())
        assert store.bytes == taken
        assert taken <= 2000


@pytest.mark.parametrize("size", [10, 100, 1000])
def test_the_accounting_is_honest(size: int) -> None:
    """Python's memory is within a fifth of the store's count, and not more."""
    count = 20_000
    gc.collect()
    tracemalloc.start()
    try:
        store = Store(1 << 30)
        before, _peak = tracemalloc.get_traced_memory()
        for number in range(count):
            store.set(b"key-%016d" % number, 0, 0, bytes(size))
        after, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.75 * store.bytes < after - before <= store.bytes


def test_item_size_is_memcacheds() -> None:
    assert item_fits(b"k", 0, 1_048_516)
    assert not item_fits(b"k", 0, 1_048_517)
    assert item_fits(b"k" * 100, 1, 1_048_413)
    assert not item_fits(b"k" * 100, 1, 1_048_414)
