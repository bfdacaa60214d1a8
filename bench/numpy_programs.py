"""The pipelines of ``bench.numpy_pipelines``, as one child runs them: ``python -m bench.numpy_programs --child [--arena]``.

``images``: blur, edges, unsharp mask and tone curve of a colour picture (``scipy.ndimage`` and NumPy). ``groupby``: derived
columns, a group-by and shares of the group (pandas). ``signal``: filter, envelope, spectra (``scipy.signal``, ``scipy.fft``).
``bodies``: gravity, all pairs of bodies at once, as courses teach it (NumPy alone).
Imports nothing that a user of NumPy alone would not: the memory of a child is what its peer needs.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.allocators import answer, install_arena

Pass = Callable[[], float]  # returns a checksum


def images(height: int) -> Pass:
    """Make the filter chain of a picture of ``height * 16/9`` columns."""
    from scipy import ndimage

    picture = np.random.default_rng(1).random((height, height * 16 // 9, 3), np.float32)
    weights = np.array([0.2126, 0.7152, 0.0722], np.float32)

    def run() -> float:
        linear = np.where(picture <= 0.04045, picture / 12.92, ((picture + 0.055) / 1.055) ** 2)
        blurred = np.stack([ndimage.uniform_filter(linear[..., k], 5) for k in range(3)], -1)
        sharp = np.clip(linear + 0.8 * (linear - blurred), 0, 1)
        grey = sharp @ weights
        across, down = grey[:, 2:] - grey[:, :-2], grey[2:] - grey[:-2]
        edges = np.sqrt(across[1:-1] ** 2 + down[:, 1:-1] ** 2)
        toned = sharp[1:-1, 1:-1] * (1 + edges[..., None]) / (1 + sharp[1:-1, 1:-1])
        final = (np.sqrt(toned / toned.max()) * 255 + 0.5).astype(np.uint8)
        return float(final.sum(dtype=np.int64))

    return run


def groupby(rows: int) -> Pass:
    """Make the group-by of ``rows`` rows in a thousand groups."""
    import pandas as pd

    rng = np.random.default_rng(2)
    frame = pd.DataFrame(
        {"shop": rng.integers(0, 1000, rows), "price": rng.random(rows) * 100, "count": rng.integers(1, 10, rows)}
    )

    def run() -> float:
        sales = frame.assign(total=frame.price * frame["count"], net=frame.price / 1.19)
        sales["margin"] = (sales.total - sales.net * sales["count"]) / (sales.total + 1)
        groups = sales.groupby("shop")
        table = groups.agg({"total": ["sum", "mean", "std"], "margin": "mean", "count": "sum"})
        sales["share"] = sales.total / groups.total.transform("sum")
        large = sales[sales.share > sales.share.mean()]
        return float(table.to_numpy().sum() + large.share.sum())

    return run


def signal(samples: int) -> Pass:
    """Make the analysis of 32 channels of ``samples`` samples."""
    from scipy import fft
    from scipy import signal as scipy_signal

    channels = np.random.default_rng(3).standard_normal((32, samples))
    sections = scipy_signal.butter(4, [0.05, 0.4], "bandpass", output="sos")

    def run() -> float:
        band = scipy_signal.sosfilt(sections, channels - channels.mean(1, keepdims=True))
        spectrum = fft.rfft(band * np.hanning(samples))
        power = np.abs(spectrum) ** 2 / samples
        envelope = np.abs(scipy_signal.hilbert(band))
        smooth = scipy_signal.fftconvolve(envelope, np.ones((1, 255)) / 255, mode="same")
        _, _, windows = scipy_signal.stft(band, nperseg=1024)
        level = 10 * np.log10(np.abs(windows) ** 2 + 1e-12)
        return float(power.sum() + smooth.sum() + level.mean())

    return run


def bodies(count: int) -> Pass:
    """Make ten steps of ``count`` bodies under their gravity (G = 1).

    Direct summation with Plummer's softening, kick-drift-kick leapfrog, the energy after each step: Aarseth, Gravitational
    N-Body Simulations, 1.2 and 2.2; in NumPy over matrices of all pairs.
    """
    rng = np.random.default_rng(4)
    begin, thrown = rng.standard_normal((2, count, 3))
    mass = np.full((count, 1), 20 / count)
    softening, step = 0.1, 0.01

    def separations(place: Any) -> tuple[Any, Any, Any]:
        x, y, z = place[:, 0:1], place[:, 1:2], place[:, 2:3]
        return x.T - x, y.T - y, z.T - z

    def acceleration(place: Any) -> Any:
        dx, dy, dz = separations(place)
        weight = (dx**2 + dy**2 + dz**2 + softening**2) ** -1.5
        return np.hstack([(dx * weight) @ mass, (dy * weight) @ mass, (dz * weight) @ mass])

    def energy(place: Any, speed: Any) -> float:
        dx, dy, dz = separations(place)
        distance = np.sqrt(dx**2 + dy**2 + dz**2 + softening**2)
        return float((mass * speed**2).sum() / 2 - np.triu(mass * mass.T / distance, 1).sum())

    def run() -> float:
        place, speed, total = begin, thrown, 0.0
        pull = acceleration(place)
        for _ in range(10):
            speed = speed + pull * step / 2
            place = place + speed * step
            pull = acceleration(place)
            speed = speed + pull * step / 2
            total += energy(place, speed)
        return total

    return run


PIPELINES = {"images": images, "groupby": groupby, "signal": signal, "bodies": bodies}


def memory(field: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    return 0


def respond(pipeline: str, size: int, passes: int) -> dict[str, Any]:
    """Run a pipeline in this process: the first pass, and ``passes`` more."""
    run = PIPELINES[pipeline](size)
    before = memory("VmRSS")
    with contextlib.suppress(OSError):  # then the peak may be that of the preparation
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set begins anew
    spent: dict[str, list[float]] = {"ns": [], "cpu": [], "system": []}
    for _ in range(passes + 1):
        begin, used = time.perf_counter_ns(), resource.getrusage(resource.RUSAGE_SELF)
        checksum = run()
        spent["ns"].append(time.perf_counter_ns() - begin)
        now = resource.getrusage(resource.RUSAGE_SELF)  # os.times() counts in hundredths of a second
        spent["system"].append((now.ru_stime - used.ru_stime) * 1e9)
        spent["cpu"].append((now.ru_utime - used.ru_utime + now.ru_stime - used.ru_stime) * 1e9)
    peak = memory("VmHWM")
    return {**spent, "checksum": checksum, "peak": peak, "growth": peak - before}


if __name__ == "__main__":
    if "--arena" in sys.argv:
        install_arena()
    answer(respond)
