"""Options of a stress run: what is refused, and the command line that says the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from realalloc.lab.stress import Options, options
from realalloc.lab.stress.options import Sizes, parse_weights


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seconds": 0.0}, "--seconds must be above 0"),
        ({"seconds": -1.0}, "--seconds"),
        ({"seconds": float("nan")}, "--seconds"),
        ({"interval": 0.0}, "--interval"),
        ({"faults": 1.5}, "--faults must be a probability"),
        ({"operations": -1}, "--operations must be at least 0"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"threads": 65}, "--threads must be at most 64"),
        ({"processes": -1}, "--processes"),
        ({"seed": 1 << 48}, "--seed"),
        ({"rss_limit": -1}, "--rss-limit"),
        ({"mix": "kmalloc=1,slab=2"}, "--mix: 'slab' is none of kmalloc"),
        ({"mix": "kmalloc=1,kmalloc=2"}, "kmalloc is named twice"),
        ({"mix": "kmalloc=-1"}, "--mix: kmalloc must be a number of at least 0"),
        ({"mix": "kmalloc=0"}, "no weight is above 0"),
        ({"mix": "none"}, "no weight is above 0"),
        ({"abuse": "earthquake=1"}, "--abuse: 'earthquake' is none of"),
        ({"abuse": "fork=1e9"}, "--abuse: fork=1e"),
        ({"hold": "random"}, "--hold must be"),
        ({"hold": "lru:3"}, "--hold must be"),
        ({"hold": "fifo:0"}, "--hold must be"),
        ({"hold": "fifo:99999999"}, "at most 65536"),
        ({"sizes": "log:8"}, "log needs two sizes"),
        ({"sizes": "log:9..8"}, "9 is above 8"),
        ({"sizes": "gauss:8..9"}, "'gauss' is none of"),
        ({"sizes": "fixed:0"}, "--sizes must be at least 1"),
        ({"sizes": "mix:8=0,9=0"}, "no weight of the mix"),
        ({"sizes": "fixed:17MiB"}, "more than a quarter of an arena"),
        ({"sizes": "fixed:many"}, "is not a size"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="--") as info:
        Options(**changes)
    assert says in str(info.value) and "\n" not in str(info.value)


def test_the_mix_of_kinds_is_what_is_named() -> None:
    assert Options(mix="kmalloc=60,vmalloc=5").weights == {"kmalloc": 60, "vmalloc": 5}
    assert Options(mix="pool").weights == {"pool": 1}
    assert set(Options().weights) == set(options.KINDS) and set(Options().rates) == set(options.ABUSES)
    assert Options(abuse="none").rates == {}
    assert parse_weights(" a=1 , b=2", ("a", "b"), "x") == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "largest"),
    [("log:8..64KiB", 65536), ("uniform:1..9", 9), ("fixed:4KiB", 4096), ("100", 100), ("mix:64=50,1MiB=1,7", 1 << 20)],
)
def test_sizes(text: str, largest: int) -> None:
    assert Sizes.parse(text).largest == largest
    assert Options(sizes=text).sizes == text


def test_hold() -> None:
    assert Options(hold="17").slots == ("random", 17)
    assert Options(hold="lifo:3").slots == ("lifo", 3)


def test_options_through_json() -> None:
    made = Options(seconds=2.5, threads=3, mix="pool=2", seed=9)
    assert Options.from_dict(json.loads(json.dumps(made.as_dict()))) == made


def test_arguments_name_what_differs_from_the_defaults() -> None:
    assert Options().as_arguments() == []
    made = Options(seconds=60.0, seed=7, rss_limit=1 << 30, abuse="none")
    assert made.as_arguments() == ["--seconds", "60", "--seed", "7", "--abuse", "none", "--rss-limit", "1073741824"]
