"""``recipe.json``: the whole resolved configuration of a run, from which it can be repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError
from edgekit.types import SCHEMES, Cpu, Effort, InputSpec, Preprocessing, Task

SCHEMA_VERSION = 1


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

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise ConfigError(f"unknown scheme '{self.scheme}'", f"known: {', '.join(SCHEMES)}")
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
        for key in ("task", "effort", "cpu"):
            plain[key] = plain[key].value
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
                f"recipe: schema version {version!r}, this edgekit reads {SCHEMA_VERSION}"
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
            return cls(**plain)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"recipe: {error}") from error


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
