"""Options of one training, as ``--set KEY=VALUE`` gives them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, TypeVar

from edgekit.errors import ConfigError

_Options = TypeVar("_Options")


def with_settings(options: _Options, settings: Sequence[str]) -> _Options:
    """Return options with some fields changed.

    Args:
        options: a frozen dataclass of numbers, truth values, texts and enumerations of texts.
        settings: ``KEY=VALUE`` each.

    Raises:
        ConfigError: a text has another form, an unknown key, or a value of another type.
    """
    known = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}  # type: ignore[arg-type]
    changed: dict[str, Any] = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals or key not in known:
            listed = ", ".join(f"{name}={_text(default)}" for name, default in known.items())
            raise ConfigError(
                f"--set '{text}': expected KEY=VALUE with a known key",
                f"known keys and their values: {listed}",
            )
        changed[key] = _parsed(key, value, known[key])
    return dataclasses.replace(options, **changed)  # type: ignore[type-var]


def _parsed(key: str, text: str, default: object) -> object:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, enum.Enum):
            return type(default)(text)
        if isinstance(default, int | float | str):
            return type(default)(text)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--set {key}={text}: expected {_expected(default)}") from error
    raise TypeError(f"option {key} is {type(default).__name__}")


def _expected(default: object) -> str:
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, enum.Enum):
        return " or ".join(str(member.value) for member in type(default))
    return "a whole number" if isinstance(default, int) else "a number"


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value.value if isinstance(value, enum.Enum) else value)
