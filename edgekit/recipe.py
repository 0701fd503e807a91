"""``recipe.json``: the whole resolved configuration of a run, from which it can be repeated."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError
from edgekit.types import (
    SCHEMES,
    Cpu,
    Effort,
    InputSpec,
    LayerBits,
    Preprocessing,
    QuantScheme,
    Rounding,
    Task,
)

SCHEMA_VERSION = 2
_END_BITS = (4, 8)


def scheme_named(name: str) -> QuantScheme:
    """Return a scheme by its name.

    Raises:
        ConfigError: there is no such scheme.
    """
    if name not in SCHEMES:
        raise ConfigError(f"unknown scheme '{name}'", f"known: {', '.join(SCHEMES)}")
    return SCHEMES[name]


def check_end_bits(scheme: str, end_bits: int) -> None:
    """Check the width of the first and last layers.

    Raises:
        ConfigError: it is out of range, or below that of all other layers.
    """
    least, most = max(_END_BITS[0], scheme_named(scheme).weight_bits), _END_BITS[1]
    if not least <= end_bits <= most:
        raise ConfigError(
            f"end bits {end_bits}: with scheme '{scheme}' the first and last layers take "
            f"{f'{least} to {most}' if least < most else most} bits",
            f"nearest possible: --end-bits {min(max(end_bits, least), most)}",
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the bytes of a result, apart from the model file.

    Attributes:
        model_sha256: hash of the file that the recipe was made for; ``None`` for a module.
        arch: ``zoo:NAME`` or ``module:factory(...)``; ``None`` where the file says it.
        inputs: shapes and dtypes of the network's inputs.
        preprocessing: how an image becomes the first input.
        task: meaning of the first output.
        scheme: quantization scheme, such as ``w8a8``.
        targets: runtimes that get an artifact.
        calibration: engine or control, with its argument: ``renorm``, ``images:DIR``.
        effort: time budget that chose the engine.
        cpu: instruction set that CPU artifacts must be exact on.
        samples: calibration samples.
        seed: seed of everything random.
        threads: torch threads; float sums depend on it.
        edgekit: version that wrote the recipe.
        end_bits: bits of the first and last layers.
        bits: bits of single layers by name; they go before scheme and ``end_bits``.
        rounding: how weights of less than 8 bits are rounded.
    """

    model_sha256: str | None
    arch: str | None
    inputs: tuple[InputSpec, ...]
    preprocessing: Preprocessing | None
    task: Task
    scheme: str
    targets: tuple[str, ...]
    calibration: str
    effort: Effort
    cpu: Cpu
    samples: int
    seed: int
    threads: int
    edgekit: str
    end_bits: int = 8
    bits: Mapping[str, LayerBits] = field(default_factory=dict)
    rounding: Rounding = Rounding.GPTQ

    def __post_init__(self) -> None:
        check_end_bits(self.scheme, self.end_bits)
        if self.samples < 1 or self.threads < 1 or self.seed < 0:
            raise ConfigError(
                f"samples ({self.samples}) and threads ({self.threads}) must be at least 1, "
                f"seed ({self.seed}) at least 0"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain = asdict(self)
        plain["inputs"] = [spec.to_dict() for spec in self.inputs]
        plain["preprocessing"] = (
            None if self.preprocessing is None else self.preprocessing.to_dict()
        )
        plain["targets"] = list(self.targets)
        for key in ("task", "effort", "cpu", "rounding"):
            plain[key] = plain[key].value
        plain["bits"] = {name: [b.weight, b.activation] for name, b in self.bits.items()}
        return {"schema_version": SCHEMA_VERSION, **plain}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Read what :meth:`to_dict` wrote; unknown and missing keys are errors.

        Raises:
            ConfigError: another schema version, an unknown or a missing key, or a bad value.
        """
        plain = dict(data)
        version = plain.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"recipe: schema version {version!r}, this edgekit reads {SCHEMA_VERSION}",
                "use the edgekit version that wrote it, or make a new one by quantizing again",
            )
        names = {field.name for field in fields(cls)}
        if set(plain) != names:
            odd = sorted(set(plain) ^ names)
            raise ConfigError(f"recipe: unknown or missing keys: {', '.join(odd)}")
        try:
            plain["inputs"] = tuple(InputSpec.from_dict(spec) for spec in plain["inputs"])
            if plain["preprocessing"] is not None:
                plain["preprocessing"] = Preprocessing.from_dict(plain["preprocessing"])
            plain["targets"] = tuple(str(name) for name in plain["targets"])
            plain["task"] = Task(plain["task"])
            plain["effort"] = Effort(plain["effort"])
            plain["cpu"] = Cpu(plain["cpu"])
            plain["rounding"] = Rounding(plain["rounding"])
            plain["end_bits"] = operator.index(plain["end_bits"])
            plain["bits"] = {name: _layer_bits(name, b) for name, b in plain["bits"].items()}
            return cls(**plain)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"recipe: {error}") from error


def _layer_bits(name: str, value: object) -> LayerBits:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or any(isinstance(bits, bool) or not isinstance(bits, int) for bits in value)
    ):
        raise ConfigError(
            f"recipe: bits of layer '{name}': {value!r} is not a pair of widths",
            "write the width of its weight and that of the activations it reads, as in [4, 8]",
        )
    try:
        return LayerBits(*value)
    except ConfigError as error:
        raise ConfigError(f"recipe: layer '{name}': {error.message}", error.hint) from error


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        ConfigError: the file cannot be read or is no recipe.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(
            f"'{path}' cannot be read as a recipe: {error}",
            "give the recipe.json of an earlier result",
        ) from error
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' is no recipe: expected a JSON object")
    return Recipe.from_dict(data)


def write_recipe(recipe: Recipe, directory: Path) -> None:
    """Write ``directory/recipe.json``; equal recipes give equal bytes."""
    text = json.dumps(recipe.to_dict(), indent=2, ensure_ascii=False)
    (directory / "recipe.json").write_text(text + "\n", encoding="utf-8")
