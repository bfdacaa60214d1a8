"""What a stress run is to do: every option with its default, checked once, and the command line that says the same.

Guarantees: an ``Options`` that exists can be run; what cannot be raises ValueError with the option's name. ``as_arguments``
names only what differs from the defaults, and read back by the command line gives the same options. Nothing of it depends
on the machine. Importing this module imports neither numba nor an arena.
"""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Final, Self

from realalloc.sizes import as_bytes, as_int

KINDS: Final = ("kmalloc", "cache", "pages", "vmalloc", "lease", "pool", "numpy")
ABUSES: Final = ("trim", "validate", "resize", "shrink", "squeeze", "fork", "gc", "signal", "rebirth")
MIX: Final = "kmalloc=70,cache=18,pages=6,vmalloc=1,lease=3,pool=1,numpy=1"
ABUSE: Final = "trim=2,validate=1,resize=10,shrink=2,squeeze=0.5,fork=2,gc=1,signal=50,rebirth=4"
STYLES: Final = ("random", "fifo", "lifo")
LARGEST_SHARE: Final = 4  # no block may be larger than this part of the arena
MOST_PER_SECOND: Final = 10_000
MAX_SECONDS: Final = 366 * 24 * 3600.0


def parse_weights(text: str, names: tuple[str, ...], what: str) -> dict[str, float]:
    """Read ``name=number,...``; what is not named is 0, ``none`` names nothing. ValueError for other names and numbers."""
    found: dict[str, float] = {}
    for part in [] if text.strip() == "none" else text.split(","):
        name, equals, number = part.strip().partition("=")
        if name not in names:
            raise ValueError(f"{what}: {name!r} is none of {', '.join(names)}")
        if name in found:
            raise ValueError(f"{what}: {name} is named twice")
        found[name] = _number(number, f"{what}: {name}") if equals else 1.0
    return found


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} must be a number of at least 0, not {text!r}")
    return value


@dataclass(frozen=True, slots=True)
class Sizes:
    """A distribution of sizes: ``log:8..64KiB`` (uniform in the logarithm), ``uniform:8..4KiB``, ``fixed:4KiB``, or
    ``mix:64=50,4KiB=30,1MiB=1`` with weights.
    """

    form: str
    sizes: tuple[int, ...]  # bounds, or the sizes of a mix
    weights: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a distribution; ValueError says what is wrong with it."""
        form, colon, rest = text.strip().partition(":")
        if not colon:
            form, rest = "fixed", form
        if form == "fixed":
            return cls(form, (as_bytes(rest, "--sizes", 1),))
        if form in ("log", "uniform"):
            low, dots, high = rest.partition("..")
            if not dots:
                raise ValueError(f"--sizes: {form} needs two sizes, as in {form}:8..64KiB, not {rest!r}")
            bounds = as_bytes(low, "--sizes", 1), as_bytes(high, "--sizes", 1)
            if bounds[0] > bounds[1]:
                raise ValueError(f"--sizes: {low} is above {high}")
            return cls(form, bounds)
        if form == "mix":
            pairs = [part.partition("=") for part in rest.split(",")]
            weights = tuple(_number(weight, f"--sizes: {size}") if equals else 1.0 for size, equals, weight in pairs)
            if not sum(weights) > 0:
                raise ValueError("--sizes: no weight of the mix is above 0")
            return cls(form, tuple(as_bytes(size, "--sizes", 1) for size, _, _ in pairs), weights)
        raise ValueError(f"--sizes: {form!r} is none of log, uniform, fixed, mix")

    @property
    def largest(self) -> int:
        """Bytes of the largest block."""
        return max(self.sizes)


@dataclass(frozen=True, slots=True)
class Options:
    """All of it. Texts are as on the command line; bytes are integers."""

    seconds: float = 10.0
    operations: int = 0  # of each process; 0: as many as the seconds give
    threads: int = 4  # of each process
    processes: int = 0  # beside the first one
    seed: int = 1
    sizes: str = "log:8..64KiB"
    hold: str = "random:256"
    mix: str = MIX
    abuse: str = ABUSE
    faults: float = 0.02
    arena: int = 64 << 20
    limit: int = 0  # bytes; 0: none
    rss_limit: int = 0
    interval: float = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if not 0 < self.seconds <= MAX_SECONDS:
            raise ValueError(f"--seconds must be above 0 and at most {MAX_SECONDS:.0f}, not {self.seconds}")
        if not 0.01 <= self.interval <= 60:
            raise ValueError(f"--interval must be 0.01 to 60 seconds, not {self.interval}")
        if not 0 <= self.faults <= 1:
            raise ValueError(f"--faults must be a probability, 0 to 1, not {self.faults}")
        as_int(self.operations, "--operations", 0, 10**15)
        as_int(self.threads, "--threads", 1, 64)
        as_int(self.processes, "--processes", 0, 64)
        as_int(self.seed, "--seed", 0, (1 << 48) - 1)
        for name in ("arena", "limit", "rss_limit"):
            as_int(getattr(self, name), f"--{name.replace('_', '-')}")
        if not sum(self.weights.values()) > 0:
            raise ValueError("--mix: no weight is above 0")
        for name, rate in self.rates.items():
            if rate > MOST_PER_SECOND:
                raise ValueError(f"--abuse: {name}={rate:g} a second; at most {MOST_PER_SECOND}")
        if self.slots[1] > 1 << 16:
            raise ValueError(f"--hold: {self.slots[1]} blocks; at most {1 << 16}")
        largest = Sizes.parse(self.sizes).largest
        if largest > self.arena // LARGEST_SHARE:
            raise ValueError(
                f"--sizes: {largest} bytes are more than a quarter of an arena of {self.arena}; raise --arena"
            )

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the kinds of work."""
        return parse_weights(self.mix, KINDS, "--mix")

    @property
    def rates(self) -> dict[str, float]:
        """How often a second each abuse is done."""
        return parse_weights(self.abuse, ABUSES, "--abuse")

    @property
    def slots(self) -> tuple[str, int]:
        """How blocks are held: the style, and how many a thread has at once."""
        style, colon, number = self.hold.strip().partition(":")
        if not colon:
            style, number = "random", style
        if style not in STYLES or re.fullmatch(r"\d{1,9}", number) is None or int(number) < 1:
            raise ValueError(f"--hold must be {', '.join(f'{s}:N' for s in STYLES)} with N above 0, not {self.hold!r}")
        return style, int(number)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can say."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Make options of what :meth:`as_dict` said."""
        return cls(**data)

    def but(self, **changes: Any) -> Self:
        """Return the same options but for some."""
        return replace(self, **changes)

    def as_arguments(self) -> list[str]:
        """Return the arguments of the command line that differ from the defaults."""
        found = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is not MISSING and value != field.default:
                spelled = f"{value:g}" if isinstance(value, float) else str(value)
                found += [f"--{field.name.replace('_', '-')}", spelled]
        return found
