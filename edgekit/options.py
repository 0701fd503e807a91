"""Parse what a user types after ``--input`` and ``--preprocessing``. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from edgekit.errors import ConfigError
from edgekit.types import DTYPES, Preprocessing

_SIZE = r"\d+(~\d*)?"
_SHAPE = re.compile(rf"{_SIZE}(x{_SIZE})*")
_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_INPUT_EXAMPLES = (
    "examples: 1x3x224x224, ids:1x50:int64, 1x3x256~x256~ (~ marks a variable size, "
    "~4 one that is a multiple of 4)"
)
_PREPROCESSING_EXAMPLE = (
    "example: mean=0.485/0.456/0.406,std=0.229/0.224/0.225,resize=256,crop=224,range=1,color=rgb"
)


class InputOption(NamedTuple):
    """One ``--input``: ``name`` is ``None`` where the user gave none."""

    name: str | None
    shape: tuple[int, ...]
    dtype: str = "float32"
    variable_axes: tuple[int, ...] = ()
    multiple: int | None = None  # nothing was said of it


def parse_input(text: str) -> InputOption:
    """Parse ``[NAME:]1x3x224x224[:dtype]``; ``~`` behind a size marks an axis of variable size.

    ``~4`` says beside that such sizes must be multiples of 4.

    Raises:
        ConfigError: the text has another form.
    """
    parts = text.strip().split(":")
    name = None if _SHAPE.fullmatch(parts[0]) else parts.pop(0)
    if not 1 <= len(parts) <= 2 or not _SHAPE.fullmatch(parts[0]):
        raise ConfigError(f"--input '{text}': expected [NAME:]SHAPE[:DTYPE]", _INPUT_EXAMPLES)
    if name is not None and not _NAME.fullmatch(name):
        raise ConfigError(f"--input '{text}': '{name}' is not a name", _INPUT_EXAMPLES)
    dtype = parts[1] if len(parts) == 2 else "float32"
    if dtype not in DTYPES:
        raise ConfigError(
            f"--input '{text}': dtype '{dtype}' is not one of {', '.join(DTYPES)}", _INPUT_EXAMPLES
        )
    sizes = [size.partition("~") for size in parts[0].split("x")]
    shape = tuple(int(size) for size, _, _ in sizes)
    if 0 in shape:
        raise ConfigError(f"--input '{text}': every size must be at least 1", _INPUT_EXAMPLES)
    variable = tuple(axis for axis, (_, mark, _) in enumerate(sizes) if mark)
    multiples = {int(multiple) for _, _, multiple in sizes if multiple}
    if len(multiples) > 1 or 0 in multiples:
        raise ConfigError(
            f"--input '{text}': all variable sizes are multiples of one number, at least 1",
            _INPUT_EXAMPLES,
        )
    return InputOption(name, shape, dtype, variable, next(iter(multiples), None))


def parse_preprocessing(text: str) -> Preprocessing:
    """Parse ``mean=0.5,std=0.5,resize=256,crop=224,range=1,color=rgb``, every part optional.

    Raises:
        ConfigError: a part has another form, or a value is out of its range.
    """
    values: dict[str, Any] = {}
    for part in text.strip().split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in _PARSERS or not equals:
            raise ConfigError(
                f"--preprocessing: '{part}' is not one of {', '.join(_PARSERS)} with =VALUE",
                _PREPROCESSING_EXAMPLE,
            )
        if key in values:
            raise ConfigError(f"--preprocessing: {key} is given twice", _PREPROCESSING_EXAMPLE)
        try:
            values[key] = _PARSERS[key](value)
        except ValueError as error:
            raise ConfigError(
                f"--preprocessing: '{value}' is not a value of {key}", _PREPROCESSING_EXAMPLE
            ) from error
    return Preprocessing(**values)


def _numbers(text: str) -> tuple[float, ...]:
    numbers = tuple(float(number) for number in text.split("/"))
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(text)
    return numbers


_PARSERS: dict[str, Callable[[str], object]] = {
    "mean": _numbers,
    "std": _numbers,
    "resize": int,
    "crop": int,
    "range": int,
    "color": str,
}
