"""What workloads ask for: the same for the same seed, in range, distributed as the names say; a ring ends with nothing."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from realalloc.lab import streams
from realalloc.lab.streams import LEAST, SMALL_MIX, XMALLOC_SIZES, load_traces, order, ring

NUMBER = 50_000
DRAWN = {
    "slots": lambda seed: streams.slots(1000, NUMBER, seed),
    "log_uniform": lambda seed: streams.log_uniform(16, 4096, NUMBER, seed),
    "uniform": lambda seed: streams.uniform(16, 512, NUMBER, seed),
    "inverse_square": lambda seed: streams.inverse_square(4, 32768, NUMBER, seed),
    "mix": lambda seed: streams.mix(NUMBER, seed),
    "xmalloc": lambda seed: streams.xmalloc(NUMBER, seed),
    "tents": lambda seed: streams.tents(8, 16000, NUMBER, seed),
    "ruler": lambda seed: streams.ruler(NUMBER, seed),
    "pareto": lambda seed: streams.pareto(5000, NUMBER, seed),
    "order": lambda seed: order("shuffled", NUMBER, seed),
    "bursts": lambda seed: streams.bursts(NUMBER, 32, 250.0, seed),
}
RANGES = {
    "slots": (0, 999),
    "log_uniform": (16, 4096),
    "uniform": (16, 511),
    "inverse_square": (LEAST, 32768),
    "mix": (min(SMALL_MIX), max(SMALL_MIX)),
    "xmalloc": (min(XMALLOC_SIZES), max(XMALLOC_SIZES)),
    "tents": (8, 16000),
    "ruler": (LEAST, 1024),
    "pareto": (0, 4999),
    "order": (0, NUMBER - 1),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_seed_decides_everything(name: str) -> None:
    first, again, other = DRAWN[name](1), DRAWN[name](1), DRAWN[name](2)
    assert len(first) == NUMBER
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("name", RANGES)
def test_ranges(name: str) -> None:
    low, high = RANGES[name]
    for seed in range(1, 4):
        drawn = DRAWN[name](seed)
        assert drawn.dtype == np.int32
        assert low <= drawn.min() and drawn.max() <= high
        assert drawn.min() < low + (high - low) / 20 and drawn.max() > high - (high - low) / 3  # and they are used


@given(st.integers(1, 1000), st.integers(0, 1 << 16), st.integers(0, 1 << 30))
def test_log_uniform_stays_in_any_range(low: int, more: int, seed: int) -> None:
    drawn = streams.log_uniform(low, low + more, 200, seed)
    assert low <= drawn.min() and drawn.max() <= low + more


def _shares(drawn, edges):
    return np.histogram(drawn, edges)[0] / len(drawn)


def test_log_uniform_has_as_many_in_every_octave() -> None:
    drawn = streams.log_uniform(16, 4095, NUMBER, 1)
    assert np.allclose(_shares(drawn, [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]), 1 / 8, atol=0.01)


def test_uniform_has_as_many_everywhere() -> None:
    assert np.allclose(_shares(streams.uniform(16, 512, NUMBER, 1), np.linspace(16, 512, 5)), 1 / 4, atol=0.01)
    assert np.allclose(_shares(streams.slots(1000, NUMBER, 1), np.linspace(0, 1000, 11)), 1 / 10, atol=0.01)


def test_inverse_square_is_what_it_says() -> None:
    drawn = streams.inverse_square(16, 32768, NUMBER, 1)
    for size in (32, 64, 256, 1024):  # share above: (1 / size - 1 / high) / (1 / low - 1 / high)
        expected = (1 / size - 1 / 32768) / (1 / 16 - 1 / 32768)
        assert np.mean(drawn >= size) == pytest.approx(expected, abs=0.01)


def test_mixes_draw_all_their_sizes_alike() -> None:
    for drawn, sizes in ((streams.mix(NUMBER), SMALL_MIX), (streams.xmalloc(NUMBER), XMALLOC_SIZES)):
        values, counts = np.unique(drawn, return_counts=True)
        assert values.tolist() == sorted(sizes)
        assert np.allclose(counts / NUMBER, 1 / len(sizes), atol=0.01)


def test_tents_are_small_and_multiples_of_8() -> None:
    drawn = streams.tents(8, 16000, NUMBER, 1)
    assert not (drawn % 8).any()
    assert np.median(drawn) < 16000 / 5
    assert np.mean(drawn) == pytest.approx(16000 / 6, rel=0.05)  # E[u] * E[|1 - u - v|] = 1/2 * 1/3


def test_ruler_halves() -> None:
    shares = _shares(streams.ruler(NUMBER, 1), [0, 9, 17, 33, 65, 129, 257, 513, 1025])
    assert np.allclose(shares, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 128], atol=0.01)


@pytest.mark.parametrize("places", [1, 7, 5000])
def test_pareto_has_favourites_all_over_the_place(places: int) -> None:
    drawn = streams.pareto(places, NUMBER, 1)
    assert 0 <= drawn.min() and drawn.max() < places
    counts = np.sort(np.bincount(drawn, minlength=places))[::-1]
    if places > 1000:
        assert counts[: places // 50].sum() > 0.6 * NUMBER
        favourites = np.argsort(np.bincount(drawn, minlength=places))[-50:]
        assert np.ptp(favourites) > places / 2


def test_orders() -> None:
    assert order("LIFO", 4).tolist() == [3, 2, 1, 0]
    assert order("FIFO", 4).tolist() == [0, 1, 2, 3]
    assert order("glibc-simple", 5).tolist() == [0, 1, 4, 3, 2]
    for kind in ("LIFO", "FIFO", "glibc-simple", "shuffled"):
        assert sorted(order(kind, 100)) == list(range(100))


def test_bursts_come_at_once_and_then_pause() -> None:
    due = streams.bursts(NUMBER, 32, 250.0, 1)
    gaps = np.diff(due)
    assert (gaps >= 0).all() and due[0] >= 0
    assert np.mean(gaps == 0) == pytest.approx(1 - 1 / 32, abs=0.005)
    assert due[-1] / NUMBER == pytest.approx(250, rel=0.1)
    pauses = gaps[gaps > 0]
    assert np.mean(pauses) == pytest.approx(250 * 32, rel=0.1)
    assert np.std(pauses) == pytest.approx(np.mean(pauses), rel=0.1)  # exponential
    assert len(streams.bursts(1, 32, 250.0)) == 1


def _lived(stream: streams.Operations):
    """Follow a stream with a dictionary; return the most that lived at once."""
    held: dict[int, int] = {}
    most = 0
    for slot, size in zip(stream.slots.tolist(), stream.sizes.tolist(), strict=True):
        if size < 0:
            del held[slot]
        else:
            assert slot not in held and 0 <= slot < stream.places and size >= 0
            held[slot] = size
        most = max(most, len(held))
    return held, most


@pytest.mark.parametrize("places", [5, 10, 99, 200, 1001])
@pytest.mark.parametrize("passes", [1, 2, 3, 6, 15])
def test_a_ring_ends_with_nothing(places: int, passes: int) -> None:
    stream = ring("as sh6bench", [8, 16, 300], places, passes)
    held, most = _lived(stream)
    assert held == {} and most == places
    assert stream.warm == 0 and stream.slots.dtype == stream.sizes.dtype == np.int32
    assert len(stream.slots) % 2 == 0


def test_a_ring_keeps_a_window_and_moves_it_on() -> None:
    stream = ring("r", list(range(8, 108)), 10, 2)
    assert stream.slots[:10].tolist() == list(range(10))  # the first pass fills all
    assert stream.sizes[:10].tolist() == list(range(8, 18))
    assert stream.slots[10:18].tolist() == [9, 8, 7, 6, 5, 4, 3, 2]  # 0 and 1 stay
    assert stream.slots[18:26].tolist() == list(range(2, 10))
    assert stream.slots[26:34].tolist() == [0, 1, 9, 8, 7, 6, 5, 4]  # 2 and 3 stay
    assert stream.slots[34:].tolist() == [2, 3]
    assert stream.sizes[18:26].tolist() == list(range(18, 26))  # sizes go on where they were


def test_sizes_of_sh6_and_sh8() -> None:
    six, eight = streams.sh6_sizes(), streams.sh8_sizes()
    assert min(six) >= LEAST and max(six) == 709 and six.count(709) == 50
    values, counts = np.unique(eight, return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == streams.SH8_COUNTS
    assert eight[: len(streams.SH8_COUNTS)] == list(streams.SH8_COUNTS)


def _trace(path: Path, places: int, warm: int, pairs) -> None:
    data = np.array([places, warm, len(pairs), *np.ravel(pairs)], "<i4")
    path.write_bytes(lzma.compress(data.tobytes()))


def test_traces(tmp_path: Path) -> None:
    _trace(tmp_path / "b.trc.xz", 3, 1, [(0, 100), (2, 3), (0, -1), (2, -1)])
    _trace(tmp_path / "a.more.trc.xz", 1, 0, [(0, 0)])
    (tmp_path / "c.trc").write_bytes(b"no trace")
    first, second = load_traces(str(tmp_path))
    assert (first.name, first.places, first.warm) == ("a", 1, 0) and first.sizes.tolist() == [LEAST]
    assert (second.name, second.places, second.warm) == ("b", 3, 1)
    assert second.slots.tolist() == [0, 2, 0, 2] and second.sizes.tolist() == [100, LEAST, -1, -1]
    assert second.slots.dtype == second.sizes.dtype == np.int32 and second.slots.flags["C_CONTIGUOUS"]
    assert load_traces(str(tmp_path / "nothing")) == []
