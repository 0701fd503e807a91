"""What TorchScript does with values that are no tensors: the same in Python."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

# The numbers that TorchScript writes for types of numbers.
_DTYPE_CODES = {
    torch.uint8: 0,
    torch.int8: 1,
    torch.int16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.float16: 5,
    torch.float32: 6,
    torch.float64: 7,
    torch.bool: 11,
    torch.bfloat16: 15,
}
_INTEGER_CODES = range(5)


def _same(value: Any, *_rest: Any) -> Any:
    return value


def _nothing(*_arguments: Any) -> None:
    return None


def _fail(message: Any, *_rest: Any) -> NoReturn:
    raise ValueError(f"the network raises: {message}")


def _dictionary(*entries: Any) -> dict[Any, Any]:
    return dict(zip(entries[::2], entries[1::2], strict=True))


def _dtype_code(tensor: Tensor) -> int:
    return _DTYPE_CODES[tensor.dtype]


def _shape(tensor: Tensor, axis: int | None = None) -> Any:
    return list(tensor.shape) if axis is None else tensor.shape[axis]


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) else len(value)


def _appended(values: list[Any], value: Any) -> list[Any]:
    values.append(value)
    return values


def _sum(one: Any, other: Any, factor: Any = 1) -> Any:
    return one + (other if factor == 1 else other * factor)


def _difference(one: Any, other: Any, factor: Any = 1) -> Any:
    return one - (other if factor == 1 else other * factor)


def _quotient(one: Any, other: Any, rounding: str | None = None) -> Any:
    if rounding == "trunc":
        return int(one / other) if isinstance(one, float) else one // other  # of sizes, >= 0
    return one // other if rounding == "floor" else one / other


def _converted(value: Any, dtype: Any = None, *_rest: Any) -> Any:
    return int(value) if isinstance(value, float) and dtype in _INTEGER_CODES else value


def _integer(value: Any) -> Any:
    return value if isinstance(value, torch.SymInt) else int(value)


def _part(values: Sequence[Any], start: Any, end: Any, step: int = 1) -> Sequence[Any]:
    return values[start:end:step]


def _turns(low: int, high: int, step: int) -> int:
    return len(range(low, high, step))


PRIMITIVES: Mapping[str, Callable[..., Any]] = {
    "prim::ListConstruct": lambda *values: list(values),
    "prim::TupleConstruct": lambda *values: values,
    "prim::DictConstruct": _dictionary,
    "prim::ListUnpack": _same,
    "prim::TupleUnpack": _same,
    "prim::TupleIndex": operator.getitem,
    "prim::NumToTensor": _same,
    "prim::unchecked_cast": _same,
    "prim::unchecked_unwrap_optional": _same,
    "prim::data": _same,
    "prim::Uninitialized": _nothing,
    "prim::Print": _nothing,
    "prim::RaiseException": _fail,
    "prim::dtype": _dtype_code,
    "prim::device": lambda tensor: tensor.device,
    "prim::is_cuda": lambda tensor: tensor.is_cuda,
    "prim::requires_grad": lambda _tensor: False,
    "prim::shape": _shape,
    "aten::_unwrap_optional": _same,
    "aten::warn": _nothing,
    "aten::size": _shape,
    "aten::dim": lambda tensor: tensor.dim(),
    "aten::numel": lambda tensor: tensor.numel(),
    "aten::len": _length,
    "aten::append": _appended,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__not__": operator.not_,
    "aten::keys": lambda values: list(values),
    "aten::values": lambda values: list(values.values()),
    "aten::list": lambda values: list(values),
    "aten::format": lambda text, *values: text.format(*values),
}
"""Operators that never make a tensor out of numbers; they may be given tensors."""

ON_VALUES: Mapping[str, Callable[..., Any]] = {
    "aten::add": _sum,
    "aten::add_": _sum,
    "aten::sub": _difference,
    "aten::rsub": lambda one, other, factor=1: _difference(other, one, factor),
    "aten::mul": operator.mul,
    "aten::div": _quotient,
    "aten::floordiv": operator.floordiv,
    "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::pow": operator.pow,
    "aten::neg": operator.neg,
    "aten::abs": abs,
    "aten::ceil": math.ceil,
    "aten::floor": math.floor,
    "aten::sqrt": math.sqrt,
    "aten::log": math.log,
    "aten::exp": math.exp,
    "aten::round": round,
    "prim::min": min,
    "prim::max": max,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
    "aten::__getitem__": operator.getitem,
    "aten::__contains__": operator.contains,
    "aten::slice": _part,
    "aten::Int": _integer,
    "aten::IntImplicit": _integer,
    "aten::Float": float,
    "aten::FloatImplicit": float,
    "aten::Bool": bool,
    "aten::ScalarImplicit": _same,
    "aten::item": _same,
    "aten::to": _converted,
    "aten::detach": _same,
    "aten::clone": _same,
    "aten::cpu": _same,
    "aten::__range_length": _turns,
    "aten::__derive_index": lambda index, start, step: start + index * step,
}
"""Operators that have a meaning for numbers, texts, lists and dictionaries alone."""
