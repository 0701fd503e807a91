"""Compare weights with a network, copy them into it, and check them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from edgekit.errors import LoadError
from edgekit.files.wording import listing

_COUNTER = "num_batches_tracked"  # of BatchNorm: old files lack it, and inference ignores it


@dataclass(frozen=True, slots=True)
class Differences:
    """How a file's tensors differ from those that the network has; empty if they fit."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.mismatched)

    def __str__(self) -> str:
        kinds = (("missing", self.missing), ("unexpected", self.unexpected))
        parts = [f"{len(names)} {kind} ({listing(names)})" for kind, names in kinds if names]
        if self.mismatched:
            parts.append(f"{len(self.mismatched)} that do not fit ({listing(self.mismatched, 3)})")
        return ", ".join(parts)


def load_weights(
    network: nn.Module, state: Mapping[str, Tensor], *, where: str, arch: str
) -> tuple[str, ...]:
    """Copy ``state`` into ``network`` in place and leave it in float32, evaluation mode.

    Args:
        network: the freshly built network.
        state: names to tensors of a file.
        where: the file's name, for messages.
        arch: what the network was built from, for messages.

    Returns:
        Notes for the user about what was converted.

    Raises:
        LoadError: names, shapes or kinds of numbers differ, or the weights are not finite.
    """
    notes = _precision_notes(network, state)
    network.float().cpu()
    expected = network.state_dict()
    differences = compare(expected, state)
    if differences:
        raise LoadError(
            f"{where} does not fit {arch}: {differences}",
            "check --arch and its arguments, such as zoo:NAME(num_classes=10)",
        )
    counters = {name: expected[name] for name in set(expected) - set(state)}
    complete = {name: _as_float32(tensor) for name, tensor in (counters | dict(state)).items()}
    network.load_state_dict(complete, strict=True)
    network.eval().requires_grad_(False)
    check_finite(network, where)
    return notes


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _precision_notes(network: nn.Module, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    found = {str(t.dtype) for t in state.values() if t.is_floating_point()}
    other = sorted(name.removeprefix("torch.") for name in found - {"torch.float32"})
    return (f"the weights are stored as {', '.join(other)}; used as float32",) if other else ()


def compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Differences:
    """Compare names, shapes and kinds of numbers; a missing counter of batches is no difference."""
    return Differences(
        [name for name in expected if name not in state and name.split(".")[-1] != _COUNTER],
        [name for name in state if name not in expected],
        [
            f"{name}: {problem}"
            for name in expected
            if name in state and (problem := _misfit(expected[name], state[name]))
        ],
    )


def _misfit(expected: Tensor, got: Tensor) -> str:
    if got.is_quantized or got.layout != torch.strided or got.is_meta:
        return "expected plain numbers, got a quantized, sparse or empty tensor"
    if is_lazy(expected):
        return ""  # takes its shape from the file
    if expected.shape != got.shape:
        return f"expected shape {_shape(expected)}, got {_shape(got)}"
    if expected.is_floating_point() != got.is_floating_point() or got.is_complex():
        return f"expected {_dtype(expected)}, got {_dtype(got)}"
    return ""


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_finite(network: nn.Module, where: str) -> None:
    """Check that no weight is NaN or infinite.

    Raises:
        LoadError: the message names those that are.
    """
    parameters = {name for name, _ in network.named_parameters()}
    bad = []
    for name, tensor in network.state_dict().items():
        # A buffer may hold infinities on purpose (an attention mask), a BatchNorm statistic not.
        strict = name in parameters or name.split(".")[-1].startswith("running_")
        if tensor.is_floating_point() and not _finite(tensor, allow_infinity=not strict):
            bad.append(name)
    if bad:
        raise LoadError(
            f"{where}: {len(bad)} tensors hold NaN or infinity: {listing(bad)}",
            "training diverged or the file is damaged: use an earlier checkpoint",
        )


def _finite(tensor: Tensor, *, allow_infinity: bool) -> bool:
    if bool(tensor.sum().isfinite()):  # one pass without a mask; NaN and infinity survive a sum
        return True
    bad = tensor.isnan() if allow_infinity else ~tensor.isfinite()
    return not bool(bad.any())
