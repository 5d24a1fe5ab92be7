"""Renders `hills.png`, the picture of the demo: value-noise hills, a lake, a sky with clouds and film grain."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HEIGHT, WIDTH = 512, 768


def noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth value noise in [0, 1] with features of `cell` pixels."""
    grid = rng.random((int(height / cell) + 3, int(width / cell) + 3))
    y, x = np.arange(height) / cell, np.arange(width) / cell
    i, j = y.astype(int), x.astype(int)
    u, v = y - i, x - j
    u, v = (u * u * (3 - 2 * u))[:, None], (v * v * (3 - 2 * v))[None]
    a, b = grid[np.ix_(i, j)], grid[np.ix_(i, j + 1)]
    c, d = grid[np.ix_(i + 1, j)], grid[np.ix_(i + 1, j + 1)]
    return (a * (1 - v) + b * v) * (1 - u) + (c * (1 - v) + d * v) * u


def fractal(
    rng: np.random.Generator, height: int, width: int, cell: float, octaves: int, gain: float = 0.5
) -> np.ndarray:
    """Noise of several octaves, in [0, 1]."""
    layers = [gain**k * noise(rng, height, width, cell / 2**k) for k in range(octaves)]
    total = sum(layers)
    return (total - total.min()) / (total.max() - total.min())


def render(seed: int = 7) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) uint8."""
    rng = np.random.default_rng(seed)
    y = np.linspace(0, 1, HEIGHT)[:, None]
    image = (1 - y[..., None]) * np.array([60, 110, 190.0]) + y[..., None] * np.array([235, 215, 190.0])
    image = np.broadcast_to(image, (HEIGHT, WIDTH, 3)).copy()
    clouds = np.clip(fractal(rng, HEIGHT, WIDTH, 180, 6) - 0.5, 0, 1)[..., None] * 2.2 * (1 - y[..., None])
    image += clouds * (np.array([250, 245, 240]) - image)
    rows = np.arange(HEIGHT)[:, None]
    for depth, (base, height, colour) in enumerate(
        [(0.42, 90, (110, 125, 150)), (0.52, 110, (90, 110, 110)), (0.66, 120, (74, 96, 60)), (0.84, 110, (58, 70, 38))]
    ):
        line = base * HEIGHT - height * (fractal(rng, 1, WIDTH, 260 / (1 + depth), 7, 0.52)[0] - 0.5) * 2
        inside = np.clip(rows - line[None], 0, 1)[..., None]
        texture = fractal(rng, HEIGHT, WIDTH, 26 + 12 * depth, 6, 0.75)
        light = 0.62 + 0.9 * (texture - 0.5) + 1.6 * np.gradient(texture, axis=1)
        shade = np.array(colour) * (0.75 + light[..., None]) * (0.9 + 0.2 * rng.random((1, 1, 3)))
        image += inside * (shade - image)
    lake = np.clip((rows - 0.90 * HEIGHT) / 6, 0, 1)[..., None] * np.ones((1, WIDTH, 1))
    ripple = np.sin(rows * 0.9 + 8 * fractal(rng, HEIGHT, WIDTH, 60, 4)) * 8
    mirror = image[::-1] * 0.35 + np.array([30, 52, 74]) * 0.75 + ripple[..., None]
    image += lake * (mirror - image)
    return np.clip(image + rng.normal(0, 2.2, image.shape), 0, 255).round().astype(np.uint8)


if __name__ == "__main__":
    from PIL import Image

    Image.fromarray(render()).save(Path(__file__).with_name("hills.png"), optimize=True)
