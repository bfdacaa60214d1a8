"""A pipeline over pictures: noise is smoothed, edges are found, features are gathered, reduced, and clustered."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

SEED = 7
PICTURES, SIDES, CLUSTERS, STEPS = 24, (32, 48, 64, 96, 128), 4, 6

Image = npt.NDArray[np.float64]


def smooth(image: Image, passes: int) -> Image:
    """Blur by means of neighbours."""
    for _ in range(passes):
        wide = np.pad(image, 1, mode="edge")
        image = (wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] + wide[1:-1, 1:-1]) / 5
    return image


def features(image: Image) -> Image:
    """Describe a picture by histograms of its edges."""
    down, right = np.gradient(image)
    strength = np.hypot(down, right)
    angle = np.arctan2(down, right)
    strong = strength > np.quantile(strength, 0.75)
    edges, _ = np.histogram(angle[strong], bins=16, range=(-np.pi, np.pi), weights=strength[strong])
    light, _ = np.histogram(image, bins=16)
    spectrum = np.abs(np.fft.rfft2(image))[:4, :4].ravel()
    return np.concatenate([edges / (edges.sum() + 1e-9), light / image.size, np.log1p(spectrum)])


def cluster(points: Image, dice: np.random.Generator) -> npt.NDArray[np.int64]:
    """Group points around centres (Lloyd)."""
    centres = points[dice.choice(len(points), CLUSTERS, replace=False)]
    nearest = np.zeros(len(points), np.int64)
    for _ in range(STEPS):
        distance = ((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
        nearest = distance.argmin(axis=1)
        for each in range(CLUSTERS):
            members = points[nearest == each]
            if len(members):
                centres[each] = members.mean(axis=0)
    return nearest


def main(scale: int) -> None:
    """Run the pipeline on ``scale`` batches."""
    total = 0
    for batch in range(scale):
        dice = np.random.default_rng(SEED + batch)
        rows = []
        for number in range(PICTURES):
            side = SIDES[int(dice.integers(len(SIDES)))]
            image = dice.normal(0, 0.2, (side, side)) + np.sin(np.arange(side) / (1 + number % CLUSTERS))
            rows.append(features(smooth(image, 3)))
        table = np.vstack(rows)
        table = (table - table.mean(axis=0)) / (table.std(axis=0) + 1e-9)
        _, _, axes = np.linalg.svd(table, full_matrices=False)
        total += int(np.bincount(cluster(table @ axes[:8].T, dice), minlength=CLUSTERS).max())
    print(f"{scale} batches: {total}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
