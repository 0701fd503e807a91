"""4-bit constants of an OpenVINO model.

The converter carries out the cast of INT4 codes by itself, so that the file would hold INT8. Here
the codes become INT4 constants again, with a Convert behind them that OpenVINO carries out when it
compiles the model: on disk half a byte, in execution the kernels of INT8.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from edgekit.errors import ExportError
from edgekit.runners.openvino_import import import_openvino


def pack_constants(model: Any, names: Collection[str]) -> None:
    """Store INT8 constants of an OpenVINO model as INT4.

    Args:
        model: an ``openvino.Model``; it is changed.
        names: names of the constants; their values are -8 to 7.

    Raises:
        ExportError: the converter left no INT8 constant of a name.
    """
    found = {
        node.get_friendly_name(): node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant" and node.get_friendly_name() in names
    }
    missing = sorted(set(names) - set(found))
    if missing:
        raise ExportError(
            f"OpenVINO's converter left no constant '{missing[0]}' to store in 4 bits",
            "use --scheme w8a8 for this target, and report the network to edgekit",
        )
    for name, node in found.items():
        _pack(node, name)


def _pack(node: Any, name: str) -> None:
    openvino = import_openvino()
    operators = import_openvino("openvino.opset13")
    # Memory of its own: a constant shares that of its tensor, and keeps no array alive.
    tensor = openvino.Tensor(openvino.Type.i4, openvino.Shape(node.data.shape))
    tensor.data[:] = _nibbles(node.data).view(tensor.data.dtype).reshape(tensor.data.shape)
    constant = operators.constant(tensor)
    constant.set_friendly_name(f"{name}.codes")
    convert = operators.convert(constant, "i8")
    convert.set_friendly_name(name)
    node.output(0).replace(convert.output(0))


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Return two codes in each byte, the first in its low half."""
    flat = codes.reshape(-1).astype(np.uint8) & 0xF
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    packed: np.ndarray = flat[0::2] | (flat[1::2] << 4)
    return packed
