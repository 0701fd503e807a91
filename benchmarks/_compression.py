"""Ways to make weight-only artifacts, NNCF's weight compression, and what a file's weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._process import StepError
from edgekit.types import Rounding

_SMALLEST = 1024  # values of a constant that counts as a weight
_SAMPLES = 128  # of our set


@dataclass(frozen=True, slots=True)
class Engine:
    """One way to make a weight-only artifact.

    Attributes:
        widths: ``8``, ``4`` (first and last layers 8) or ``4 everywhere``; an engine is compared
            with ours of the same widths.
        ours: options of :func:`quantize_observed`; ``None`` for NNCF.
        nncf: options of ``nncf.compress_weights``.
        data: whether NNCF is fed with our set.
    """

    name: str
    widths: str
    ours: Mapping[str, Any] | None = None
    nncf: Mapping[str, Any] = field(default_factory=dict)
    data: bool = False


def _int4(name: str, mode: str, *, data: bool = False, **options: bool) -> list[Engine]:
    """Return NNCF's 4 bits with and without the last layer."""
    stated = {"mode": mode, **options}
    return [
        Engine(f"nncf {name}", "4", nncf=stated, data=data),
        Engine(f"nncf {name}", "4 everywhere", nncf={**stated, "all_layers": True}, data=data),
    ]


ENGINES = (
    Engine("edgekit w8a16", "8", ours={"scheme": "w8a16"}),
    Engine("nncf int8_asym", "8", nncf={"mode": "int8_asym"}),
    Engine("nncf int8_sym", "8", nncf={"mode": "int8_sym"}),
    *(
        Engine(
            f"edgekit w4a16 {method.value}",
            widths,
            ours={"scheme": "w4a16", "rounding": method, "end_bits": end_bits},
        )
        for method in (Rounding.GPTQ, Rounding.NEAREST)
        for widths, end_bits in (("4", 8), ("4 everywhere", 4))
    ),
    *_int4("int4_sym", "int4_sym"),
    *_int4("int4_asym", "int4_asym"),
    *_int4("int4_sym awq, our set", "int4_sym", data=True, awq=True),
    *_int4("int4_sym scale estimation, our set", "int4_sym", data=True, scale_estimation=True),
    *_int4("int4_sym gptq, our set", "int4_sym", data=True, gptq=True),
    *_int4("int4_asym gptq, our set", "int4_asym", data=True, gptq=True),
)
"""The first of each width is what the others are compared with."""


def compress(engine: Engine, floating: Path, made: torch.Tensor, out: Path) -> None:
    """Compress a float network with NNCF as its documentation says.

    Args:
        engine: what to ask of it.
        floating: the network's ``.onnx`` file.
        made: our set, ``[N, C, H, W]``.
        out: the ``.xml`` file to write.

    Raises:
        StepError: NNCF refuses.
    """
    import logging

    import nncf
    import openvino  # type: ignore[import-untyped]
    from nncf.quantization.advanced_parameters import (
        AdvancedCompressionParameters,
        GroupSizeFallbackMode,
    )

    nncf.set_log_level(logging.ERROR)
    options = {**engine.nncf, "mode": nncf.CompressWeightsMode(engine.nncf["mode"])}
    if engine.data:
        samples = [made[k : k + 1].numpy() for k in range(min(len(made), _SAMPLES))]
        options |= {"dataset": nncf.Dataset(samples), "subset_size": len(samples)}
    if engine.widths != "8":
        # groups that do not divide a layer's inputs are an error by default
        options["advanced_parameters"] = AdvancedCompressionParameters(
            group_size_fallback_mode=GroupSizeFallbackMode.ADJUST
        )
    # from ONNX each time: compression changes the model in place
    model = openvino.convert_model(str(floating))
    refusals = (nncf.ParameterNotSupportedError, nncf.ValidationError, nncf.InternalError)
    try:
        compressed = nncf.compress_weights(model, **options)
    except (*refusals, RuntimeError, ValueError) as error:
        raise StepError(str(error).splitlines()[0]) from error
    openvino.save_model(compressed, str(out), compress_to_fp16=False)


def stored_types(path: Path) -> dict[str, float]:
    """Return the share of an OpenVINO file's weights by the type they are stored in."""
    import openvino

    counts: dict[str, int] = {}
    for node in openvino.Core().read_model(str(path)).get_ops():
        size = int(np.prod(list(node.output(0).shape))) if node.get_type_name() == "Constant" else 0
        if size >= _SMALLEST:
            name = node.get_element_type().get_type_name()
            counts[name] = counts.get(name, 0) + size
    total = sum(counts.values())
    return {name: round(count / total, 4) for name, count in sorted(counts.items())}
