"""Random network inputs with the statistics of natural signals."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from edgekit.capture import CapturedModel
from edgekit.graph import OpKind, constant, op_kind, op_name
from edgekit.types import InputSpec, Preprocessing

PIXEL_SPREAD = 0.27
"""Standard deviation of natural image pixels, as a fraction of their range."""


def input_domain(
    spec: InputSpec, preprocessing: Preprocessing | None
) -> tuple[float, float] | None:
    """Return the smallest and largest value that preprocessing can produce, if it is known."""
    if preprocessing is None or len(spec.shape) != 4 or spec.dtype != "float32":
        return None
    top = 1.0 if preprocessing.range == 1 else 255.0
    channels = max(len(preprocessing.mean), len(preprocessing.std))
    mean = preprocessing.mean * (channels // len(preprocessing.mean))
    std = preprocessing.std * (channels // len(preprocessing.std))
    low = min((0.0 - m) / s for m, s in zip(mean, std, strict=True))
    high = max((top - m) / s for m, s in zip(mean, std, strict=True))
    return low, high


def signal_bounds(
    spec: InputSpec, preprocessing: Preprocessing | None
) -> tuple[float, float] | None:
    """Return the bounds of a zero-mean, unit-spread signal that fills the input's domain."""
    if input_domain(spec, preprocessing) is None:
        return None
    return -0.5 / PIXEL_SPREAD, 0.5 / PIXEL_SPREAD


def structured_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return noise whose spectrum falls as that of natural signals, zero mean and unit spread.

    Gaussian noise is drawn at every octave of the last one (``[N, C, L]``) or two
    (``[N, C, H, W]``) axes, upsampled linearly and summed with weight ``sqrt(size / octave)``
    (renorm, our own method). Other shapes get white noise.
    """
    if len(shape) not in (3, 4) or min(shape[2:]) < 8:
        return torch.randn(shape, generator=generator)
    total = torch.zeros(shape)
    mode = "bilinear" if len(shape) == 4 else "linear"
    divisor = 1
    while min(shape[2:]) // divisor >= 4:
        size = [max(side // divisor, 1) for side in shape[2:]]
        coarse = torch.randn((*shape[:2], *size), generator=generator)
        if divisor > 1:
            coarse = F.interpolate(coarse, shape[2:], mode=mode, align_corners=False)
        total += coarse * divisor**0.5
        divisor *= 2
    return (total - total.mean()) / total.std()


def white_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return Gaussian noise of zero mean and unit spread."""
    return torch.randn(shape, generator=generator)


def patterns(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return structured noise with two-tone patterns laid over it, spread about one.

    Half of the patterns are blobs (structured noise through a steep sigmoid), half gratings of
    random frequency and direction; each mixes two random colours. Classifiers are surer of them
    than of noise alone, which suits a comparison of classes, and the noise keeps activations in
    the ranges of natural images. Shapes without space get plain structured noise.
    """
    noise = structured_noise(shape, generator)
    if len(shape) not in (3, 4):
        return noise
    count, channels = shape[:2]
    ones = (1,) * (len(shape) - 2)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    steep = 1.0 + 7.0 * uniform(count, 1, *ones)
    wave = torch.tanh(structured_noise((count, 1, *shape[2:]), generator) * steep)
    if len(shape) == 4:
        wave[::2] = _gratings(wave[::2].shape, uniform)
    first, second = (2 * uniform(count, channels, *ones) - 1 for _ in range(2))
    # 0.7 and 0.8: overall spread near one, as natural inputs have
    return 0.7 * ((first + second) / 2 + (first - second) / 2 * wave) + 0.8 * noise


def _gratings(shape: torch.Size, uniform: Callable[..., Tensor]) -> Tensor:
    """Return ``[N, 1, H, W]`` sine gratings with 2 to 32 periods, every other one squared off."""
    count, _, height, width = shape
    y = torch.linspace(-1, 1, height).reshape(1, 1, -1, 1)
    x = torch.linspace(-1, 1, width).reshape(1, 1, 1, -1)
    angle, phase = (2 * math.pi * uniform(count, 1, 1, 1) for _ in range(2))
    frequency = math.pi * 2.0 ** (1 + 4 * uniform(count, 1, 1, 1))
    wave = torch.sin(frequency * (x * angle.cos() + y * angle.sin()) + phase)
    wave[1::2] = wave[1::2].sign()
    return wave


def random_batches(
    model: CapturedModel,
    samples: int,
    batch: int,
    generator: torch.Generator,
    *,
    draw: Callable[[tuple[int, ...], torch.Generator], Tensor] = structured_noise,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches of random inputs in each input's domain.

    Float inputs come from ``draw``, images scaled to the range that preprocessing gives them;
    integer inputs are uniform over the rows of the embedding tables that they index.
    """
    size = batch if model.batch else 1
    nodes = model.graph.graph.find_nodes(op="placeholder")
    for _ in range(max(samples // size, 1)):
        made = []
        for spec, node in zip(model.inputs, nodes, strict=True):
            shape = (size, *spec.shape[1:]) if spec.dynamic_batch else spec.shape
            made.append(_draw(model, spec, node, shape, generator, draw))
        yield tuple(made)


def _draw(
    model: CapturedModel,
    spec: InputSpec,
    node: fx.Node,
    shape: tuple[int, ...],
    generator: torch.Generator,
    draw: Callable[[tuple[int, ...], torch.Generator], Tensor],
) -> Tensor:
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if dtype == torch.bool:
        return torch.randint(2, shape, generator=generator).bool()
    if not dtype.is_floating_point and dtype != torch.uint8:  # bytes are pixels, not ids
        return torch.randint(_rows(model, node), shape, generator=generator).to(dtype)
    noise = _along_time(node, shape, lambda size: draw(size, generator))
    domain = (0.0, 255.0) if dtype == torch.uint8 else input_domain(spec, model.preprocessing)
    if domain is not None:
        low, high = domain
        noise = ((low + high) / 2 + noise * PIXEL_SPREAD * (high - low)).clamp(low, high)
    return noise.to(dtype)


def _along_time(
    node: fx.Node, shape: tuple[int, ...], draw: Callable[[tuple[int, ...]], Tensor]
) -> Tensor:
    """Draw ``[N, T, F]`` sequences with their structure along T, not along the features.

    Convolutions read the last axis of a rank-3 tensor as time; everything else reads axis 1.
    """
    kinds = {op_kind(user) for user in node.users}
    if len(shape) != 3 or OpKind.CONV in kinds:
        return draw(shape)
    return draw((shape[0], shape[2], shape[1])).transpose(1, 2).contiguous()


def _rows(model: CapturedModel, node: fx.Node) -> int:
    """Return the number of ids that an integer input may hold: its smallest embedding table.

    Casts, slices and other layouts of the input hold the same ids.
    """
    rows: list[int] = []
    pending, seen = [node], {node}
    while pending:
        ids = pending.pop()
        for user in ids.users:
            table = constant(model.graph, user.args[0]) if user.args else None
            if table is not None and op_name(user) in ("embedding", "embedding_bag"):
                rows.append(table.shape[0])
            elif table is not None and op_name(user) in ("index", "index_select"):
                rows.append(table.shape[_indexed_axis(user, ids)])
            elif user not in seen and _holds_ids(user):
                seen.add(user)
                pending.append(user)
    return min(rows, default=2)


def _holds_ids(node: fx.Node) -> bool:
    moves = op_name(node) in ("to", "_to_copy") or node.target is operator.getitem
    return moves or op_kind(node) in (OpKind.LAYOUT, OpKind.IDENTITY)


def _indexed_axis(node: fx.Node, ids: fx.Node) -> int:
    """Return the axis of a constant that ids pick from."""
    at = node.args[1]
    if isinstance(at, (list, tuple)):  # table[:, ids] is index(table, [None, ids])
        return next(axis for axis, value in enumerate(at) if value is ids)
    assert isinstance(at, int)
    return at
