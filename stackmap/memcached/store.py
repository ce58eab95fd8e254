"""The items: a dictionary in least-recently-used order, bounded by the memory it really takes."""

from __future__ import annotations

import itertools
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stackmap.codec.memcached.text import parse_unsigned

from .prefixes import Prefixes

if TYPE_CHECKING:
    from collections.abc import Callable

#: What an item costs besides the bytes of its key and value: the two bytes objects' headers, the
#: Item, its numbers and header text, and its places in the dictionary and in the order.
ITEM_OVERHEAD = 356
#: The largest item, by memcached's own accounting of it (its 1 MiB includes its item header).
MAX_ITEM = 1 << 20
#: What memcached itself counts for an item besides its key, flags and value.
ITEM_HEADER = 59
_MEMCACHED_FLAGS = 4
#: Larger exptimes are absolute times.
MAX_RELATIVE = 60 * 60 * 24 * 30
_NEVER_FLUSH = math.inf
_MODULUS = 1 << 64

#: How a storage command ended, in the words the client is told.
Outcome = bytes
STORED = b"STORED\r\n"
NOT_STORED = b"NOT_STORED\r\n"
EXISTS = b"EXISTS\r\n"
NOT_FOUND = b"NOT_FOUND\r\n"
NO_MEMORY = b"SERVER_ERROR out of memory storing object\r\n"

#: Marks of an item: clients read its key in base64; its value is out of date; a client was told to
#: make a new value; its key has a space or a line end, so it cannot be named in a classic command.
BINARY_KEY = 1
STALE = 2
WON = 4
NO_WORD = 8


def item_fits(key: bytes, flags: int, length: int) -> bool:
    """Whether memcached would take a value of ``length`` bytes under this key and these flags."""
    flags_size = _MEMCACHED_FLAGS if flags else 0
    return ITEM_HEADER + len(key) + flags_size + length <= MAX_ITEM


class Item:
    r"""One value.

    Attributes:
        value: the bytes, never changed in place.
        flags: the client's 32 bits.
        expires: when it does, in seconds of the store's clock; 0 for never.
        cas: unique among all values ever stored.
        used: when it was last retrieved, in seconds of the store's clock; if it never was, when it
            was stored, as a negative number.
        header: what goes between the key and the value in a reply, ``b" FLAGS LENGTH\\r\\n"``.
        marks: BINARY_KEY, STALE, WON and NO_WORD, which meta commands set.
    """

    __slots__ = ("cas", "expires", "flags", "header", "marks", "used", "value")

    def __init__(self, value: bytes, flags: int, expires: int, cas: int, used: int) -> None:
        self.value = value
        self.flags = flags
        self.expires = expires
        self.cas = cas
        self.used = used
        self.header = b" %d %d\r\n" % (flags, len(value))
        self.marks = 0


@dataclass(slots=True)
class Counters:
    """Counters of requests.  ``cmd_get`` and ``cmd_touch`` are sums of hits and misses."""

    cmd_set: int = 0
    cmd_flush: int = 0
    cmd_meta: int = 0
    get_hits: int = 0
    get_misses: int = 0
    get_expired: int = 0
    get_flushed: int = 0
    delete_hits: int = 0
    delete_misses: int = 0
    incr_hits: int = 0
    incr_misses: int = 0
    decr_hits: int = 0
    decr_misses: int = 0
    cas_hits: int = 0
    cas_misses: int = 0
    cas_badval: int = 0
    touch_hits: int = 0
    touch_misses: int = 0
    store_too_large: int = 0
    store_no_memory: int = 0
    total_items: int = 0
    evictions: int = 0
    evicted_unfetched: int = 0
    evicted_nonzero: int = 0
    #: Seconds for which the item that was evicted last had not been used.
    evicted_time: int = 0
    reclaimed: int = 0
    expired_unfetched: int = 0
    #: Half values that were given up for want of memory.
    malloc_fails: int = 0


class Store:
    """All items of a server.

    Args:
        limit: how many bytes of memory the items may take, overhead included, together with what
            is reserved for other uses.
        clock: seconds since the epoch.

    Time stands still between calls of :meth:`tick`, as in memcached, whose clock has a resolution
    of one second.

    Attributes:
        bytes: memory taken by the items now, overhead included.
        reserved: memory taken by what waits in connections (:meth:`reserve`), and by lent values
            that have left the store (:meth:`lend`).
        counters: see :class:`Counters`.
        prefixes: counters of keys by their prefix, if they are turned on.
        now: the time of the last tick, in whole seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.time) -> None:
        self.limit = limit
        self.bytes = 0
        self.reserved = 0
        self.counters = Counters()
        self.prefixes = Prefixes()
        self._clock = clock
        self._items: OrderedDict[bytes, Item] = OrderedDict()
        #: Items that were flushed: nobody gets them, and they are the first to make room.  Freeing
        #: all of them at once would take seconds of a large store's clients.
        self._flushed: OrderedDict[bytes, Item] = OrderedDict()
        #: Not every hit is as :meth:`hit` would have it.
        self._careful = False
        self._cas = 0
        #: Bytes that the items may take at present.
        self._room = limit
        #: How many connections are sending an item's value, and those that are no longer stored.
        self._lent: dict[Item, int] = {}
        self._gone: set[Item] = set()
        self._flush_at = _NEVER_FLUSH
        self.now = self._started = int(clock())

    def __len__(self) -> int:
        return len(self._items) + len(self._flushed)

    def tick(self) -> None:
        """Look at the clock."""
        self.now = now = int(self._clock())
        if now >= self._flush_at:
            self._flush_at = _NEVER_FLUSH
            self._clear()

    def set_limit(self, limit: int) -> None:
        """Change how many bytes the items may take, and evict what is too much."""
        self.limit = limit
        self.reserve(0)

    def reserve(self, size: int) -> None:
        """Take room from the items for ``size`` more bytes of something else; negative: give back.

        Items are evicted to make room, but more may be reserved than there are.
        """
        self.reserved += size
        self._room = self.limit - self.reserved
        while self.bytes > self._room and self.bytes:
            self._evict()

    @property
    def overdrawn(self) -> bool:
        """Whether more than half of the memory is reserved."""
        return self.reserved * 2 > self.limit

    def lend(self, item: Item) -> None:
        """The value is going to be sent piece by piece, whatever becomes of the item meanwhile."""
        self._lent[item] = self._lent.get(item, 0) + 1

    def give_back(self, item: Item) -> None:
        """Undo :meth:`lend`."""
        count = self._lent.pop(item) - 1
        if count:
            self._lent[item] = count
        elif item in self._gone:
            self._gone.remove(item)
            self.reserve(-len(item.value))

    def newest(self, count: int) -> list[bytes]:
        """Up to ``count`` keys, most recently used ones first."""
        return list(itertools.islice(reversed(self._items), count))

    def peek(self, key: bytes) -> Item | None:
        """The item, if it is live, without using it."""
        item = self._items.get(key)
        return item if item and not 0 < item.expires <= self.now else None

    @property
    def age(self) -> int:
        """For how many seconds the least recently used item has not been used."""
        oldest = next(iter((self._flushed or self._items).values()), None)
        return self.now - abs(oldest.used) if oldest is not None else 0

    @property
    def last_cas(self) -> int:
        """The ``cas`` of the item that was stored last."""
        return self._cas

    # -- retrieval --

    def count_prefixes(self, *, on: bool) -> None:
        """Turn the counters of keys by their prefix on or off."""
        self.prefixes.on = on
        self._careful = True

    def mark(self, key: bytes, marks: int) -> None:
        """Add marks to the item of a key that came in base64."""
        item = self._items.get(key)
        if item is None:
            return
        if b" " in key or b"\n" in key:
            marks |= NO_WORD
            self._careful = True
        item.marks |= marks

    def find(self, key: bytes) -> Item | None:
        """The item, if it is live, without using it.  If it is not live, it is removed."""
        item = self._items.get(key)
        if item is None:
            if self._flushed and self._drop_flushed(key):
                self.counters.get_flushed += 1
            return None
        if item.expires and item.expires <= self.now:
            self._remove(key)
            self.counters.get_expired += 1
            return None
        return item

    def use(self, key: bytes, item: Item) -> None:
        """The item of this key becomes the most recently used one.

        It moves once a second, because that takes a fifth of a hit; memcached's move once a minute.
        """
        if item.used != self.now:
            self._items.move_to_end(key)
            item.used = self.now

    def hit(self, key: bytes) -> Item | None:
        """As :meth:`get`, but if there is no such item, nothing is counted.

        ``key`` may be anything that came between ``get`` and the line end.
        """
        item = self._items.get(key)
        if item is None or (item.expires and item.expires <= self.now):
            return None
        if self._careful and (self.prefixes.on or item.marks & NO_WORD):
            return None
        if item.used != self.now:  # as in use()
            self._items.move_to_end(key)
            item.used = self.now
        self.counters.get_hits += 1
        return item

    def get(self, key: bytes) -> Item | None:
        """The item, which becomes the most recently used one."""
        item = self._items.get(key)
        if item is None or (item.expires and item.expires <= self.now):
            item = self.find(key)
        if self.prefixes.on:
            self.prefixes.got(key, hit=item is not None)
        if item is None:
            self.counters.get_misses += 1
            return None
        if item.used != self.now:  # as in use()
            self._items.move_to_end(key)
            item.used = self.now
        self.counters.get_hits += 1
        return item

    def touch(self, key: bytes, exptime: int) -> Item | None:
        """Give the item a new exptime, and return it."""
        item = self.find(key)
        if item is None:
            self.counters.touch_misses += 1
            return None
        self.counters.touch_hits += 1
        item.expires = self.deadline(exptime)
        item.used = self.now
        self._items.move_to_end(key)
        return item

    def get_and_touch(self, key: bytes, exptime: int) -> Item | None:
        """As :meth:`touch`, for a client that wants the item."""
        item = self.touch(key, exptime)
        if self.prefixes.on:
            self.prefixes.got(key, hit=item is not None)
        return item

    def deadline(self, exptime: int) -> int:
        """When an item with this exptime expires, in seconds of the clock; 0 for never."""
        if exptime == 0:
            return 0
        if exptime < 0:
            return self._started
        if exptime <= MAX_RELATIVE:
            return self.now + exptime
        return max(exptime, self._started)

    # -- storage --

    def set(self, key: bytes, flags: int, exptime: int, value: bytes) -> Outcome:
        """Store unconditionally."""
        self.counters.cmd_set += 1
        return self._put(key, value, flags, self.deadline(exptime) if exptime else 0)

    def add(self, key: bytes, flags: int, exptime: int, value: bytes) -> Outcome:
        """Store only if the key has no item; if it has, that becomes the most recently used."""
        self.counters.cmd_set += 1
        if self.find(key) is not None:
            self._items.move_to_end(key)
            return NOT_STORED
        return self._put(key, value, flags, self.deadline(exptime))

    def replace(self, key: bytes, flags: int, exptime: int, value: bytes) -> Outcome:
        """Store only if the key has an item."""
        self.counters.cmd_set += 1
        if self.find(key) is None:
            return NOT_STORED
        return self._put(key, value, flags, self.deadline(exptime))

    def append(self, key: bytes, value: bytes, cas: int = 0) -> Outcome:
        """Add to the end of an item, if it has this ``cas`` or that is 0.

        Its flags and exptime stay.
        """
        return self._extend(key, b"", value, cas)

    def prepend(self, key: bytes, value: bytes, cas: int = 0) -> Outcome:
        """As :meth:`append`, to the beginning."""
        return self._extend(key, value, b"", cas)

    def create(self, key: bytes, value: bytes) -> Item | None:
        """Store an item that does not expire under a key that has none; None: for want of room.

        No command is counted.
        """
        return self._items[key] if self._put(key, value, 0, 0) is STORED else None

    def compare_and_set(
        self,
        key: bytes,
        flags: int,
        exptime: int,
        cas: int,
        value: bytes,
        *,
        stale: bool = False,
    ) -> Outcome:
        """Store only if the item is still the one with this ``cas``.

        If it is a later one and ``stale`` is set, the value is stored all the same, with the
        exptime of that one, and marked as stale.
        """
        self.counters.cmd_set += 1
        item = self.find(key)
        if item is None:
            self.counters.cas_misses += 1
            return NOT_FOUND
        if item.cas == cas:
            self.counters.cas_hits += 1
            return self._put(key, value, flags, self.deadline(exptime))
        if stale and 0 < cas < item.cas:
            self.counters.cas_hits += 1
            outcome = self._put(key, value, flags, item.expires)
            if outcome is STORED:
                self._items[key].marks = item.marks & WON | STALE
            return outcome
        self.counters.cas_badval += 1
        return EXISTS

    def count(self, key: bytes, delta: int, *, down: bool) -> int | None:
        """Add ``delta`` to an item that holds a decimal number, or subtract it.

        Sums wrap at 64 bits; differences stop at 0.  A number that has become shorter is padded
        with spaces to its old length.

        Returns:
            The new number; None if there is no such item.

        Raises:
            ValueError: the item does not hold a number.
        """
        counters = self.counters
        item = self.find(key)
        if item is None:
            if down:
                counters.decr_misses += 1
            else:
                counters.incr_misses += 1
            return None
        return self.count_item(key, item, delta, down=down)

    def count_item(self, key: bytes, item: Item, delta: int, *, down: bool) -> int:
        """As :meth:`count`, for the item that the key has."""
        number = parse_unsigned(item.value)
        if number is None:
            raise ValueError("not a number")
        counters = self.counters
        if down:
            counters.decr_hits += 1
            number = max(number - delta, 0)
        else:
            counters.incr_hits += 1
            number = (number + delta) % _MODULUS
        value = b"%d" % number
        if len(value) > len(item.value):
            self._put(key, value, item.flags, item.expires)
        else:
            # As memcached, which changes it in place: the item is neither new nor used.
            self._cas += 1
            value = value.ljust(len(item.value))
            self._items[key] = new = Item(value, item.flags, item.expires, self._cas, item.used)
            new.marks = item.marks
        return number

    # -- removal --

    def delete(self, key: bytes) -> bool:
        """Remove the item; False if there is none."""
        if self.prefixes.on:
            self.prefixes.deleted(key)
        if self.find(key) is None:
            self.counters.delete_misses += 1
            return False
        self.remove(key)
        return True

    def remove(self, key: bytes) -> None:
        """Remove the live item of this key."""
        self.counters.delete_hits += 1
        self._remove(key)

    def invalidate(self, item: Item) -> None:
        """Mark a stored item as stale, with a new ``cas``; the next client may win."""
        self._cas += 1
        item.cas = self._cas
        item.marks = item.marks & ~WON | STALE

    def refuse(self, verb: bytes, key: bytes) -> None:
        """Count a storage command whose value is too large for an item."""
        self.counters.store_too_large += 1
        if self.prefixes.on and verb != b"ms":
            self.prefixes.set(key)
        if verb in {b"set", b"ms"}:
            # The old value would be stale.
            self.discard(key)

    def refuse_for_memory(self, verb: bytes, key: bytes) -> None:
        """Count a storage command whose value could not wait in memory until it was complete."""
        self.counters.store_no_memory += 1
        self.counters.malloc_fails += 1
        if verb in {b"set", b"ms"}:
            # The old value would be stale.
            self.discard(key)

    def discard(self, key: bytes) -> None:
        """Remove the item, if there is one, because its new value could not be stored."""
        if key in self._items:
            self._remove(key)

    def flush(self, exptime: int) -> None:
        """Remove all items, now or ``exptime`` later (as in storage commands)."""
        self.counters.cmd_flush += 1
        when = self.deadline(exptime)
        if when <= self.now:
            self._flush_at = _NEVER_FLUSH
            self._clear()
        else:
            self._flush_at = when

    # -- inside --

    def _drop_flushed(self, key: bytes) -> bool:
        item = self._flushed.pop(key, None)
        if item is None:
            return False
        self.bytes -= len(key) + len(item.value) + ITEM_OVERHEAD
        self._let_go(item)
        return True

    def _put(self, key: bytes, value: bytes, flags: int, expires: int) -> Outcome:
        items = self._items
        old = items.get(key)
        size = len(value)
        if old is None:
            size += len(key) + ITEM_OVERHEAD
            if self._flushed:
                self._drop_flushed(key)
        else:
            size -= len(old.value)
        if self.bytes + size > self._room and not self._make_room(key, size):
            return NO_MEMORY
        self._cas += 1
        items[key] = Item(value, flags, expires, self._cas, -self.now)
        self.bytes += size
        self.counters.total_items += 1
        if old is not None:
            items.move_to_end(key)
            if self._lent:
                self._let_go(old)
        return STORED

    def _make_room(self, key: bytes, size: int) -> bool:
        """Evict the least recently used items other than ``key`` until ``size`` more bytes fit."""
        items = self._items
        old = items.get(key)
        kept = len(key) + len(old.value) + ITEM_OVERHEAD if old is not None else 0
        if kept + size <= self._room:
            if old is not None:
                items.move_to_end(key)
            # An item whose value is being sent gives no room: all may have to go, this one too.
            while self.bytes + size > self._room and self.bytes > kept:
                self._evict()
            if self.bytes + size <= self._room and (old is None or key in items):
                return True
        self.counters.store_no_memory += 1
        self.discard(key)
        return False

    def _evict(self) -> None:
        """Remove the least recently used item, or one that was flushed."""
        counters = self.counters
        dead = bool(self._flushed)
        victim, item = (self._flushed or self._items).popitem(last=False)
        self.bytes -= len(victim) + len(item.value) + ITEM_OVERHEAD
        if dead or (item.expires and item.expires <= self.now):
            counters.reclaimed += 1
            counters.expired_unfetched += item.used < 0
        else:
            counters.evictions += 1
            counters.evicted_unfetched += item.used < 0
            counters.evicted_nonzero += item.expires != 0
            counters.evicted_time = self.now - abs(item.used)
        self._let_go(item)

    def _let_go(self, item: Item) -> None:
        """The item has left the store; if its value is being sent, it still takes memory."""
        if self._lent and item in self._lent:
            self._gone.add(item)
            self.reserve(len(item.value))

    def _extend(self, key: bytes, before: bytes, after: bytes, cas: int) -> Outcome:
        self.counters.cmd_set += 1
        item = self.find(key)
        if item is None:
            return NOT_STORED
        if cas and item.cas != cas:
            return EXISTS
        value = b"".join((before, item.value, after))
        if not item_fits(key, item.flags, len(value)):
            return NOT_STORED
        return self._put(key, value, item.flags, item.expires)

    def _remove(self, key: bytes) -> None:
        item = self._items.pop(key)
        self.bytes -= len(key) + len(item.value) + ITEM_OVERHEAD
        self._let_go(item)

    def _clear(self) -> None:
        """Make all items unreachable."""
        if self._flushed:
            # No key is in both.
            self._flushed.update(self._items)
            self._items.clear()
        else:
            self._flushed, self._items = self._items, self._flushed
