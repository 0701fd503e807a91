"""The edgekit checkpoint: weights together with all that must be known to run them.

It is a plain dict in a ``torch.save`` file that opens with ``weights_only=True``. ``arch`` may
only name a network of the zoo: a file never decides which of the user's modules is imported.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgekit.architecture import Architecture, parse_arch
from edgekit.errors import ConfigError, LoadError, OutputError, UnsafeFileError
from edgekit.files.wording import listing, printable
from edgekit.types import InputSpec, Preprocessing, Task

FORMAT = "edgekit"
VERSION = 1
_KEYS = (
    "format",
    "version",
    "arch",
    "state_dict",
    "inputs",
    "preprocessing",
    "task",
    "num_classes",
)
_REMAKE = "write the file anew with edgekit.checkpoint.save_checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint file says. ``preprocessing`` is ``None`` for inputs that are no images."""

    arch: Architecture
    state_dict: Mapping[str, Tensor]
    inputs: tuple[InputSpec, ...]
    preprocessing: Preprocessing | None
    task: Task
    num_classes: int | None


def save_checkpoint(
    path: Path,
    *,
    arch: str,
    state_dict: Mapping[str, Tensor],
    inputs: Sequence[InputSpec],
    preprocessing: Preprocessing | None = None,
    task: Task = Task.CLASSIFICATION,
    num_classes: int | None = None,
) -> Path:
    """Write a checkpoint so that ``path`` is either complete or untouched.

    Args:
        path: the file to write; an existing file is replaced.
        arch: a network of the zoo, such as ``zoo:efficientnet_lite0(num_classes=10)``.
        state_dict: the network's weights.
        inputs: the network's inputs in the order of its forward pass.
        preprocessing: how an image becomes the first input.
        task: what the first output means.
        num_classes: number of classes, for a classifier.

    Returns:
        ``path``.

    Raises:
        ConfigError: ``arch`` is not a network of the zoo.
        OutputError: the file cannot be written.
    """
    architecture = parse_arch(arch)
    if not architecture.is_zoo:
        raise ConfigError(
            f"a checkpoint may only name a network of the zoo, not '{arch}'",
            "save the state dict with torch.save and pass it with --arch module:factory",
        )
    content = {
        "format": FORMAT,
        "version": VERSION,
        "arch": str(architecture),
        "state_dict": {name: tensor.detach().cpu() for name, tensor in state_dict.items()},
        "inputs": [spec.to_dict() for spec in inputs],
        "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
        "task": task.value,
        "num_classes": num_classes,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    _write_atomically(path, buffer.getbuffer())
    return path


def _write_atomically(path: Path, content: memoryview) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror})",
            "choose a file in a directory that exists and can be written",
        ) from error


def is_checkpoint(value: object) -> bool:
    """Whether what a file holds is an edgekit checkpoint, of any version."""
    stated = value.get("format") if isinstance(value, dict) else None
    return isinstance(stated, str) and stated == FORMAT


def read_checkpoint(value: object, where: str = "checkpoint") -> Checkpoint:
    """Check what a file holds, field by field.

    Args:
        value: what ``torch.load`` returned.
        where: the file's name, for messages.

    Raises:
        LoadError: a field is missing, unknown or of a wrong type, or the version is unknown.
        UnsafeFileError: the file names code outside of the zoo.
    """
    if not isinstance(value, dict) or not is_checkpoint(value):
        raise LoadError(f"{where}: is not an edgekit checkpoint", _REMAKE)
    version = value.get("version")
    if not _is_int(version) or version != VERSION:
        raise LoadError(
            f"{where}: is an edgekit checkpoint of version {_short(version)}; this edgekit reads "
            f"version {VERSION}",
            "update edgekit, or write the file anew with this version",
        )
    unknown = [str(key) for key in value if key not in _KEYS]
    missing = [key for key in _KEYS if key not in value]
    if unknown or missing:
        what = f"unknown keys: {listing(unknown)}" if unknown else f"no {listing(missing)}"
        raise LoadError(f"{where}: edgekit checkpoint with {what}", _REMAKE)
    fields = _Fields(value, where)
    return Checkpoint(
        fields.arch(),
        fields.state_dict(),
        fields.inputs(),
        fields.preprocessing(),
        fields.task(),
        fields.num_classes(),
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    """The typed reading of a checkpoint's fields; every error names the file and the field."""

    values: Mapping[str, Any]
    where: str

    def arch(self) -> Architecture:
        text = self._typed("arch", str)
        shown = printable(text)
        if not text.startswith("zoo:"):
            raise UnsafeFileError(
                f"{self.where}: the file asks to import and call '{shown}'; nothing was imported",
                "a file may only name a network of the zoo (zoo:NAME); to use your own module, "
                "save the state dict alone and type --arch module:factory yourself",
            )
        try:
            return parse_arch(text)
        except ConfigError as error:
            raise LoadError(f"{self.where}: field 'arch': {error.message}", error.hint) from error

    def state_dict(self) -> Mapping[str, Tensor]:
        state: dict[object, object] = self._typed("state_dict", dict)
        tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
        odd = [str(key) for key in state if key not in tensors]
        if odd or not state:
            what = f"entries that are not tensors: {listing(odd)}" if odd else "no tensors"
            raise LoadError(f"{self.where}: field 'state_dict' has {what}", _REMAKE)
        return tensors

    def inputs(self) -> tuple[InputSpec, ...]:
        items = self._typed("inputs", list)
        if not items or not all(_is_input(item) for item in items):
            raise self._wrong("inputs", "a list of {name, shape, dtype, variable_axes, multiple}")
        try:
            return tuple(InputSpec.from_dict(item) for item in items)
        except ConfigError as error:
            raise LoadError(f"{self.where}: field 'inputs': {error.message}", _REMAKE) from error

    def preprocessing(self) -> Preprocessing | None:
        if self.values["preprocessing"] is None:
            return None
        item = self._typed("preprocessing", dict)
        if not _is_preprocessing(item):
            raise self._wrong("preprocessing", "{mean, std, resize, crop, range, color} or nothing")
        try:
            return Preprocessing.from_dict(item)
        except ConfigError as error:
            raise LoadError(f"{self.where}: field {error.message}", _REMAKE) from error

    def task(self) -> Task:
        text = self._typed("task", str)
        try:
            return Task(text)
        except ValueError as error:
            raise self._wrong("task", f"one of {', '.join(task.value for task in Task)}") from error

    def num_classes(self) -> int | None:
        count: int | None = self.values["num_classes"]
        if count is not None and not (_is_int(count) and count > 0):
            raise self._wrong("num_classes", "a number of classes or nothing")
        return count

    def _typed(self, name: str, kind: type) -> Any:
        if not isinstance(self.values[name], kind):
            raise self._wrong(name, f"a {kind.__name__}")
        return self.values[name]

    def _wrong(self, name: str, expected: str) -> LoadError:
        got = _short(self.values[name])
        return LoadError(f"{self.where}: field '{name}' must be {expected}, not {got}", _REMAKE)


def _short(value: object) -> str:
    plain = value is None or isinstance(value, str | int | float)
    return printable(repr(value)) if plain else f"a {type(value).__name__} of another content"


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_input(item: object) -> bool:
    return (
        isinstance(item, dict)
        and all(isinstance(key, str) for key in item)
        and {"name", "shape"} <= set(item)
        and isinstance(item["name"], str)
        and isinstance(item.get("dtype", ""), str)
        and _is_int(item.get("multiple", 1))
        and all(
            isinstance(item[key], list) and all(map(_is_int, item[key]))
            for key in ("shape", "variable_axes")
            if key in item
        )
    )


def _is_preprocessing(item: Mapping[object, object]) -> bool:
    return all(isinstance(key, str) and _field_fits(key, value) for key, value in item.items())


def _field_fits(key: str, value: object) -> bool:
    if key in ("mean", "std"):
        return isinstance(value, list) and all(map(_is_number, value))
    if key in ("resize", "crop"):
        return value is None or _is_int(value)
    if key == "range":
        return _is_int(value)
    return key != "color" or isinstance(value, str)  # unknown keys are told by Preprocessing
