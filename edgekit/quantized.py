"""The quantized model, neutral about targets, and its lowering to one target."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from edgekit.graph import WEIGHTED, OpKind, constant, op_kind
from edgekit.lowering import (
    TRANSPARENT,
    LoweredModel,
    LoweringProfile,
    Placement,
    place,
    source_of,
)
from edgekit.passes.bias_correction import bias_shift
from edgekit.quant.affine import (
    QParams,
    WeightCodes,
    broadcast,
    max_scale,
    qparams_from_range,
    quantize_weight,
)
from edgekit.quant.ranges import mse_qparams
from edgekit.quant.saturation import Pairing, SaturationReport, quantize_without_overflow
from edgekit.quant.statistics import Statistics, TensorStatistics
from edgekit.quant.weight_scales import mse_scale
from edgekit.reference import Reference, reference_of
from edgekit.sites import Role, Site, SitedModel, layer_name
from edgekit.types import FLOAT_BITS, LayerBits, QuantScheme
from edgekit.weight_only import plan_weight_only, stored_codes

_INT32_HEADROOM = 2.0**30


@dataclass(frozen=True)
class QuantizedModel:
    """Statistics, decisions and integer codes of a network.

    ``bits`` and ``codes`` are keyed by layer name. 8-bit codes are full-range ones, from which
    each target's own are derived where its kernels need others; narrower ones are used by all
    targets as they are. ``grids`` holds learned ranges by tensor and width; other tensors take the
    range that the statistics say. ``biases`` ``[C_out]`` holds those that were learned with the
    codes, by layer; they are corrected already.
    """

    sited: SitedModel
    statistics: Statistics
    scheme: QuantScheme
    bits: Mapping[str, LayerBits]
    codes: Mapping[str, WeightCodes]
    decisions: Mapping[str, object] = field(default_factory=dict)
    grids: Mapping[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)

    @functools.cached_property
    def reference(self) -> Reference | None:
        """What rounding and biases can be measured on (:func:`edgekit.reference.reference_of`)."""
        return reference_of(self.sited, self.statistics)


def quantize_model(
    sited: SitedModel,
    statistics: Statistics,
    scheme: QuantScheme,
    bits: Mapping[str, LayerBits],
    decisions: Mapping[str, object],
) -> QuantizedModel:
    """Round the weights of every layer to the nearest integer codes."""
    codes = {}
    for site in sited.sites:
        if site.role is not Role.WEIGHT:
            continue
        weight = _parameter(sited, site)
        axis = output_axis(sited.node(site.consumer))
        name = layer_name(sited.node(site.consumer))
        if name not in bits:
            continue  # a table that the scheme leaves as it is
        width = bits[name].weight
        if bits[name].activation == FLOAT_BITS:
            codes[name] = stored_codes(sited, name, weight, axis, width)
            continue
        scale = (max_scale if width == 8 else mse_scale)(weight, axis, width)
        codes[name] = quantize_weight(weight, scale, axis, width)
    return QuantizedModel(sited, statistics, scheme, bits, codes, decisions)


def output_axis(layer: fx.Node) -> int:
    """Return the output-channel axis of a layer's weight."""
    return 1 if op_kind(layer) is OpKind.CONV_TRANSPOSE else 0


def lower(
    model: QuantizedModel, profile: LoweringProfile, reasons: Mapping[str, str]
) -> LoweredModel:
    """Derive what one target executes.

    Args:
        model: the neutral quantized model.
        profile: the target's rules.
        reasons: nodes that the target cannot run on integers, with the reason.
    """
    plan = plan_weight_only(
        model.sited, model.scheme, model.bits, model.codes, profile.weight_only, profile.target
    )
    texts = {name: layer.text for name, layer in plan.stored.items()}
    reasons = {**reasons, **plan.reasons, **texts}
    placement = place(model.sited, profile, reasons, plan.floating)
    placement = replace(placement, stored=plan.stored)
    activations = _grids(model, profile, placement)
    weights: dict[int, WeightCodes] = {}
    biases: dict[int, Tensor] = {}
    bias_scales: dict[int, Tensor] = {}
    at_risk: dict[str, tuple[int, int]] = {}
    sites = _sites_by_consumer(model.sited)
    for name in sorted(placement.integer | placement.stored.keys()):
        layer = model.sited.node(name)
        if Role.WEIGHT not in sites.get(name, {}):
            continue
        site = sites[name][Role.WEIGHT]
        codes, report = _layer_codes(model, profile, layer, site)
        bias_site = sites[name].get(Role.BIAS)
        bias = None if bias_site is None else _parameter(model.sited, bias_site)
        integer_bias = profile.integer_bias and name in placement.integer
        if integer_bias and bias is not None:
            codes = _room_for_bias(model, layer, site, codes, bias, _input_grid(layer, activations))
        weights[site.index] = codes
        at_risk[layer_name(layer)] = (report.at_risk, report.channels)
        if bias is not None and bias_site is not None:
            learned = model.biases.get(layer_name(layer))
            meant = _parameter(model.sited, site)
            if learned is not None:  # for these codes, of which the target's own may differ
                bias, meant = learned, model.codes[layer_name(layer)].dequantize()
            source = source_of(layer.args[0])
            assert source is not None
            mean = model.statistics.tensors[source.name].channel_mean
            if integer_bias:
                grid = _input_grid(layer, activations)
                bias_scales[bias_site.index] = grid.scale * _per_output(codes.scale, bias)
            corrected = bias + bias_shift(layer, codes.dequantize() - meant, mean)
            step = bias_scales.get(bias_site.index)
            biases[bias_site.index] = (
                corrected if step is None else torch.round(corrected / step) * step
            )
    return LoweredModel(
        profile, model.sited, placement, activations, weights, biases, bias_scales, at_risk
    )


def _grids(
    model: QuantizedModel, profile: LoweringProfile, placement: Placement
) -> dict[int, QParams]:
    """Return the grid of every quantized edge: its tensor's, as wide as the reader says."""
    found: dict[tuple[str, int], QParams] = {}
    grids = {}
    for index in sorted(placement.edges):
        site = model.sited.sites[index]
        bits = _read_bits(model, model.sited.node(site.consumer))
        key = placement.tensors[site.tensor], bits
        if key not in found:
            tensor = model.statistics.tensors[key[0]]
            found[key] = _activation_grid(tensor, profile, bits, model.grids.get(key))
        grids[index] = found[key]
    return grids


def _read_bits(model: QuantizedModel, consumer: fx.Node) -> int:
    """Width of the activations that a layer reads; what has no weights reads 8 bits.

    What only moves values reads as many as the widest of its readers: another grid before it would
    round twice.
    """
    if op_kind(consumer) in TRANSPARENT:
        readers = (user for site in consumer.users for user in site.users)
        return max((_read_bits(model, reader) for reader in readers), default=8)
    known = model.bits.get(layer_name(consumer)) if op_kind(consumer) in WEIGHTED else None
    return 8 if known is None else min(known.activation, 8)  # a float layer may read what is 8 bits


def _activation_grid(
    tensor: TensorStatistics,
    profile: LoweringProfile,
    bits: int,
    learned: tuple[float, float] | None = None,
) -> QParams:
    low, high = tensor.minimum, tensor.maximum
    if tensor.prior is not None:
        low, high = max(low, tensor.prior[0]), min(high, tensor.prior[1])
    scheme = replace(profile.unsigned if low >= 0 else profile.signed, bits=bits)
    if learned is not None:
        grid = qparams_from_range(*learned, scheme)
    elif tensor.exact:
        grid = mse_qparams(torch.tensor([low, high]), low, high, scheme)
    else:
        grid = mse_qparams(tensor.values, low, high, scheme, margin=tensor.margin)
    return replace(grid, scale=_float16_up(grid.scale)) if profile.float16 else grid


def _float16_up(scale: float) -> float:
    """Return the smallest FP16 number that is at least ``scale``."""
    half = torch.tensor(scale, dtype=torch.float64).half()
    if float(half) < scale:
        half = torch.nextafter(half, torch.tensor(math.inf, dtype=torch.half))
    return float(half)


def _layer_codes(
    model: QuantizedModel, profile: LoweringProfile, layer: fx.Node, site: Site
) -> tuple[WeightCodes, SaturationReport]:
    weight = _parameter(model.sited, site)
    full = model.codes[layer_name(layer)]
    report = SaturationReport(weight.shape[full.axis], 0, 0)
    if full.bits < 8:  # no two such codes can overflow 16 bits, and their scales are FP16 numbers
        return full, report
    integer = model.bits[layer_name(layer)].activation != FLOAT_BITS
    if profile.pairing is not Pairing.NONE and integer:
        return quantize_without_overflow(weight, full.axis, full.bits, profile.pairing)
    if profile.float16:
        scale = torch.tensor([_float16_up(float(value)) for value in full.scale])
        return quantize_weight(weight, scale, full.axis, full.bits), report
    return full, report


def _room_for_bias(
    model: QuantizedModel,
    layer: fx.Node,
    site: Site,
    codes: WeightCodes,
    bias: Tensor,
    grid: QParams,
) -> WeightCodes:
    """Grow the scale of channels whose int32 bias would overflow (tiny weights, large bias)."""
    least = bias.abs() / (_INT32_HEADROOM * grid.scale)
    least = least.reshape(-1, codes.scale.numel()).amax(0)
    if bool((codes.scale >= least).all()):
        return codes
    scale = torch.maximum(codes.scale, least)
    weight = _parameter(model.sited, site)
    rounded = quantize_weight(weight, scale, codes.axis, codes.bits)
    grown = broadcast(scale > codes.scale, codes.axis, weight.dim())
    mixed = torch.where(grown, rounded.codes, codes.codes)
    return WeightCodes(mixed, scale, codes.axis, codes.bits)


def _per_output(scale: Tensor, bias: Tensor) -> Tensor:
    """Repeat the scale of a grouped transposed convolution for each group of output channels."""
    return scale.repeat(bias.numel() // scale.numel())


def _input_grid(layer: fx.Node, activations: Mapping[int, QParams]) -> QParams:
    argument = layer.args[0]
    assert isinstance(argument, fx.Node)
    source = argument
    while int(source.args[1]) not in activations:  # type: ignore[arg-type]
        above = source_of(source)  # a zero padding: the quantizer stands before it
        assert above is not None and isinstance(above.args[0], fx.Node)
        source = above.args[0]
    return activations[int(source.args[1])]  # type: ignore[arg-type]


def _sites_by_consumer(sited: SitedModel) -> dict[str, dict[Role, Site]]:
    found: dict[str, dict[Role, Site]] = {}
    for site in sited.sites:
        if site.role in (Role.WEIGHT, Role.BIAS):
            found.setdefault(site.consumer, {})[site.role] = site
    return found


def _parameter(sited: SitedModel, site: Site) -> Tensor:
    value = constant(sited.model.graph, sited.node(site.tensor))
    assert value is not None
    return value
