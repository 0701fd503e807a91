"""Classes of drawn figures: each is a few parts in a fixed arrangement, redrawn every time.

What makes a class is which parts it has, and where; what varies are place, size, slant, colours,
the ground, and small parts strewn behind it that belong to no class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_KINDS = 5
_EDGE = 1.5  # pixels over which an outline fades


@dataclass(frozen=True, slots=True)
class Part:
    """One part, in units of half the picture around the figure's centre.

    Attributes:
        kind: 0 ellipse, 1 ring, 2 polygon, 3 star, 4 bar.
        centre: row and column.
        size: half its height and width.
        angle: its turn, radians.
        corners: of a polygon or star.
        shade: which of the figure's colours it has.
    """

    kind: int
    centre: tuple[float, float]
    size: tuple[float, float]
    angle: float
    corners: int
    shade: int


@dataclass(frozen=True, slots=True)
class Figure:
    """A class: its parts, and its colours as hues from 0 to 1."""

    parts: tuple[Part, ...]
    hues: tuple[float, ...]


def drawn_figure(rng: np.random.Generator) -> Figure:
    """Draw a class of two to four parts."""
    count = int(rng.integers(2, 5))
    hue = float(rng.uniform())
    hues = (hue, float((hue + rng.uniform(0.2, 0.8)) % 1.0))
    return Figure(tuple(_part(rng, 0.45, (0.15, 0.45)) for _ in range(count)), hues)


def draw_shape(figure: Figure, rng: np.random.Generator, side: int) -> np.ndarray:
    """Draw a picture of a class, ``[side, side, 3]`` uint8."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (2.0 / side) - 1.0
    place = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    image = _ground(rng, place)
    sharpness = side / 2.0 / _EDGE
    for _ in range(int(rng.integers(0, 4))):  # strewn parts
        part = _part(rng, 0.9, (0.06, 0.14))
        _paint(image, part, place, _colour(rng, float(rng.uniform())), sharpness)
    turned = _moved(rng, place)
    colours = [_colour(rng, hue + float(rng.normal(0.0, 0.06))) for hue in figure.hues]
    for part in figure.parts:
        _paint(image, part, turned, colours[part.shade], sharpness)
    image += rng.normal(0.0, 0.03, image.shape).astype(np.float32)
    pixels: np.ndarray = (image.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    return pixels


def _part(rng: np.random.Generator, reach: float, size: tuple[float, float]) -> Part:
    row, column = (float(v) for v in rng.uniform(-reach, reach, 2))
    tall, wide = (float(v) for v in rng.uniform(*size, 2))
    return Part(
        int(rng.integers(_KINDS)),
        (row, column),
        (tall, wide),
        float(rng.uniform(0.0, np.pi)),
        int(rng.integers(3, 7)),
        int(rng.integers(2)),
    )


def _ground(rng: np.random.Generator, place: np.ndarray) -> np.ndarray:
    """Return a ground that runs from one colour into another, ``[side, side, 3]`` float32."""
    first, second = (rng.uniform(0.1, 0.9, 3).astype(np.float32) for _ in range(2))
    angle = float(rng.uniform(0.0, 2.0 * np.pi))
    slope = place @ np.array([np.sin(angle), np.cos(angle)], np.float32)
    share = (0.5 + 0.35 * slope)[..., None].astype(np.float32)
    ground: np.ndarray = first + share * (second - first)
    return ground


def _moved(rng: np.random.Generator, place: np.ndarray) -> np.ndarray:
    """Return where the figure has what each pixel shows, ``[side, side, 2]``."""
    turn, slant = float(rng.normal(0.0, 0.25)), float(rng.normal(0.0, 0.12))
    matrix = _rotation(turn) @ np.array([[1.0, slant], [0.0, 1.0]]) * rng.uniform(0.75, 1.15)
    shifted = place - rng.uniform(-0.2, 0.2, 2)
    moved: np.ndarray = (shifted @ np.linalg.inv(matrix).T).astype(np.float32)
    return moved


def _rotation(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


def _colour(rng: np.random.Generator, hue: float) -> np.ndarray:
    """Return a colour ``[3]`` of about this hue, from pale to full and from dark to light."""
    phase = 2.0 * np.pi * (hue + np.array([0.0, 1.0, 2.0]) / 3.0)
    wheel = 0.5 + 0.5 * np.cos(phase)
    colour = rng.uniform(0.45, 1.0) * (1.0 - rng.uniform(0.6, 1.0) * (1.0 - wheel))
    return np.asarray(colour, np.float32)


def _paint(
    image: np.ndarray, part: Part, place: np.ndarray, colour: np.ndarray, sharpness: float
) -> None:
    """Lay a part over a picture, in place."""
    ink = (0.5 - sharpness * _distance(part, place)).clip(0.0, 1.0)[..., None]
    image += ink.astype(np.float32) * (colour - image)


def _distance(part: Part, place: np.ndarray) -> np.ndarray:
    """Return about how far each place is outside of a part, negative inside, ``[side, side]``."""
    local = (place - np.asarray(part.centre, np.float32)) @ _rotation(part.angle).astype(np.float32)
    least = min(part.size)
    if part.kind == 4:  # a bar: long along one axis, narrow across
        away = np.abs(local) - np.array([max(part.size), 0.3 * least], np.float32)
        outside: np.ndarray = away.max(-1)
        return outside
    scaled = local / np.asarray(part.size, np.float32)
    radius = np.linalg.norm(scaled, axis=-1)
    if part.kind == 1:
        ring: np.ndarray = (np.abs(radius - 0.8) - 0.22) * least
        return ring
    edge: np.ndarray | float = 1.0
    if part.kind in (2, 3):
        angle = np.arctan2(scaled[..., 0], scaled[..., 1])
        sector = 2.0 * np.pi / part.corners
        within = np.abs((angle + np.pi) % sector - sector / 2.0)  # 0 between two corners
        flat = np.cos(sector / 2.0) / np.cos(within)  # the side of a regular polygon
        edge = flat if part.kind == 2 else 0.4 + 1.2 * within / sector
    filled: np.ndarray = (radius - edge) * least
    return filled
