"""Block-wise codes of matrices: one scale for each stretch of inputs of each output channel.

A scale of its own for every 128 weights costs an eighth of a bit for each and makes 4 bits usable
where one scale for a whole row is not. Every kernel for narrow weights takes blocks of a power of
two from 16 to 128 along the inputs. A row has two blocks at least: with one, TensorRT for RTX 1.7
unpacks the weights by a kernel of its own before each product.
"""

from __future__ import annotations

from torch import Tensor

from edgekit.quant.affine import WeightCodes, quantize_weight
from edgekit.quant.weight_scales import mse_scale

BLOCKS = (128, 64, 32, 16)
"""Block sizes in order of preference."""


def block_size(inputs: int) -> int | None:
    """Return the largest block that splits a layer's inputs, or ``None`` where none does."""
    return next((block for block in BLOCKS if inputs % block == 0 and inputs > block), None)


def quantize_blocks(weight: Tensor, bits: int, block: int) -> WeightCodes:
    """Round a matrix to the nearest codes of scales with the least squared error.

    Args:
        weight: ``[C, K]``, and ``block`` divides K.
        bits: width of the codes.
        block: inputs that share a scale.

    Returns:
        Codes ``[C, K]`` with scales ``[C, K / block]``, all of them FP16 numbers.
    """
    rows = weight.reshape(-1, block)
    rounded = quantize_weight(rows, mse_scale(rows, 0, bits), 0, bits)
    scale = rounded.scale.reshape(len(weight), -1)
    return WeightCodes(rounded.codes.reshape(weight.shape), scale, 0, bits, block)
