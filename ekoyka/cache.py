"""A bounded cache that a stream of things asked for once cannot empty."""

from collections import OrderedDict
from typing import Generic, TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Cache(Generic[_Key, _Value]):
    """What was asked for again is kept apart from what was asked for once (a segmented LRU).

    Strangers can only push out strangers: a value found a second time moves to the four fifths of the room
    that are kept for such values, and leaves it only for another one that was found again.
    """

    def __init__(self, size: int) -> None:
        self._sizes = (max(1, size // 5), max(1, size - size // 5))
        self._once: OrderedDict[_Key, _Value] = OrderedDict()
        self._again: OrderedDict[_Key, _Value] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def get(self, key: _Key) -> _Value | None:
        """The key's value, if it is kept."""
        value = self._again.get(key)
        if value is not None:
            self._again.move_to_end(key)
            self.hits += 1
            return value
        value = self._once.pop(key, None)
        if value is None:
            self.misses += 1
            return None
        self.hits += 1
        self._again[key] = value
        if len(self._again) > self._sizes[1]:
            self.put(*self._again.popitem(last=False))
        return value

    def put(self, key: _Key, value: _Value) -> None:
        """The value is kept, for a while."""
        self._once[key] = value
        if len(self._once) > self._sizes[0]:
            self._once.popitem(last=False)
