"""The bounded cache: strangers push out strangers."""

from ekoyka.cache import Cache


def test_what_was_asked_for_twice_outlives_a_stream_of_what_is_asked_for_once() -> None:
    cache: Cache[str, int] = Cache(100)
    for number in range(50):
        cache.put(f"useful {number}", number)
        assert cache.get(f"useful {number}") == number

    for number in range(100_000):
        assert cache.get(f"hostile {number}") is None
        cache.put(f"hostile {number}", number)

    assert [cache.get(f"useful {number}") for number in range(50)] == list(range(50))
    assert len(cache) <= 100
    assert cache.misses == 100_000


def test_it_never_holds_more_than_its_size_and_keeps_the_latest() -> None:
    cache: Cache[int, int] = Cache(10)
    for number in range(1000):
        cache.put(number, number)
        cache.get(number)

    assert len(cache) <= 10
    assert cache.get(999) == 999
    assert cache.get(0) is None
