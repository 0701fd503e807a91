"""The vocabulary that every part of edgekit shares. No torch here: this also runs on devices."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

DTYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")


class Task(str, enum.Enum):
    """What the network's first output means; it selects the fidelity metric (``verify.py``)."""

    CLASSIFICATION = "classification"
    EMBEDDING = "embedding"
    IMAGE_TO_IMAGE = "image-to-image"
    RANKING = "ranking"
    OTHER = "other"


class Cpu(str, enum.Enum):
    """Instruction set that the CPU artifacts must be exact on.

    ``AVX2``: x86 without VNNI, where 16-bit pair sums saturate (targets.md, fact 4).
    """

    AVX2 = "avx2"
    VNNI = "vnni"
    ARM = "arm"


class Effort(str, enum.Enum):
    """How much time calibration may take."""

    INSTANT = "instant"
    STANDARD = "standard"
    BEST = "best"


class Rounding(str, enum.Enum):
    """How weights of less than 8 bits are rounded."""

    AUTO = "auto"
    NEAREST = "nearest"
    SQUANT = "squant"
    GPTQ = "gptq"
    LEARNED = "learned"
    STUDENT = "student"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One network input.

    ``shape`` is an example shape; axis 0 of size 1 is the batch and is dynamic, and so are the
    axes listed in ``variable_axes`` (height and width of an any-resolution network). Their sizes
    must be multiples of ``multiple``: 4 for a network that halves twice and joins what it halved.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    variable_axes: tuple[int, ...] = ()
    multiple: int = 1

    def __post_init__(self) -> None:
        if not self.shape or any(size < 1 for size in self.shape):
            raise ConfigError(
                f"input '{self.name}': shape {self.shape} needs at least one axis, all >= 1",
                "write the shape as in --input 1x3x224x224",
            )
        if self.dtype not in DTYPES:
            raise ConfigError(
                f"input '{self.name}': dtype '{self.dtype}' is not one of {', '.join(DTYPES)}",
                "append it to the shape, as in --input ids:1x50:int64",
            )
        if any(not 0 <= axis < len(self.shape) for axis in self.variable_axes):
            raise ConfigError(
                f"input '{self.name}': variable axes {self.variable_axes} do not fit {self.shape}"
            )
        self._check_multiple()

    def _check_multiple(self) -> None:
        if self.multiple < 1 or (self.multiple > 1 and not self.variable_axes):
            raise ConfigError(
                f"input '{self.name}': multiple {self.multiple} is at least 1, and above that only "
                "for variable axes",
                "write both as in --input 1x3x256~4x256~4",
            )
        odd = [axis for axis in self.variable_axes if self.shape[axis] % self.multiple]
        if odd:
            raise ConfigError(
                f"input '{self.name}': size {self.shape[odd[0]]} of axis {odd[0]} is no multiple "
                f"of {self.multiple}, which this network needs",
                f"nearest above: {-(-self.shape[odd[0]] // self.multiple) * self.multiple}",
            )

    @property
    def dynamic_batch(self) -> bool:
        """Whether axis 0 is a batch of any size."""
        return self.shape[0] == 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "variable_axes": list(self.variable_axes),
            "multiple": self.multiple,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InputSpec:
        """Read what :meth:`to_dict` wrote; unknown keys are errors."""
        _only(data, "input", ("name", "shape", "dtype", "variable_axes", "multiple"))
        return cls(
            name=str(data["name"]),
            shape=tuple(int(size) for size in data["shape"]),
            dtype=str(data.get("dtype", "float32")),
            variable_axes=tuple(int(axis) for axis in data.get("variable_axes", ())),
            multiple=int(data.get("multiple", 1)),  # files from before it existed have none
        )


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One network output: its name and an example shape for batch 1."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OutputSpec:
        """Read what :meth:`to_dict` wrote; unknown keys are errors."""
        _only(data, "output", ("name", "shape", "dtype"))
        return cls(str(data["name"]), tuple(int(s) for s in data["shape"]), str(data["dtype"]))


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image file becomes a network input.

    Order: short side to ``resize`` (area averaging down, cubic up), central ``crop``, pixels
    divided by 255 when ``range`` is 1, minus ``mean``, divided by ``std`` (a single value
    broadcasts over channels). ``None`` means the step is not done.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: int | None = None
    crop: int | None = None
    range: int = 1
    color: str = "rgb"

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.std) not in (1, 3):
            raise ConfigError(
                "preprocessing: mean and std take one value or three, as in 0.5 or a/b/c"
            )
        if any(not value > 0 for value in self.std):
            raise ConfigError(f"preprocessing: std {self.std} must be positive")
        if self.range not in (1, 255):
            raise ConfigError(f"preprocessing: range is 1 or 255, not {self.range}")
        if self.color not in ("rgb", "bgr", "gray"):
            raise ConfigError(f"preprocessing: color is rgb, bgr or gray, not '{self.color}'")
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and size < 1:
                raise ConfigError(f"preprocessing: {name} must be at least 1, not {size}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": self.resize,
            "crop": self.crop,
            "range": self.range,
            "color": self.color,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Read what :meth:`to_dict` wrote; unknown keys are errors."""
        _only(data, "preprocessing", ("mean", "std", "resize", "crop", "range", "color"))
        plain = dict(data)
        for key in ("mean", "std"):
            if key in plain:
                plain[key] = tuple(float(value) for value in plain[key])
        return cls(**plain)


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor: ``scale`` has shape ``[]``."""


@dataclass(frozen=True, slots=True)
class PerAxis:
    """One scale for each index of ``axis``: ``scale`` has shape ``[size(axis)]``."""

    axis: int


Granularity = PerTensor | PerAxis


@dataclass(frozen=True, slots=True)
class TensorScheme:
    """Integer grid of one tensor: ``bits`` wide, signed or not, with or without a zero point.

    ``symmetric`` fixes the zero point at 0; ``narrow`` leaves out the lowest signed code, so that
    the grid is symmetric around zero (weights).
    """

    bits: int
    signed: bool
    symmetric: bool
    narrow: bool = False
    granularity: Granularity = field(default_factory=PerTensor)

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ConfigError(f"quantization to {self.bits} bits: supported are 2 to 8")

    @property
    def quant_min(self) -> int:
        """Smallest integer code."""
        if not self.signed:
            return 0
        return -(1 << self.bits - 1) + (1 if self.narrow else 0)

    @property
    def quant_max(self) -> int:
        """Largest integer code."""
        return (1 << self.bits - 1) - 1 if self.signed else (1 << self.bits) - 1


FLOAT_BITS = 16
"""Width that stands for "stays float" in a scheme's name, as in W4A16."""


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """Bit widths of weights and activations, such as W8A8."""

    name: str
    weight_bits: int
    activation_bits: int

    @property
    def weight_only(self) -> bool:
        """Whether activations stay float and only weights are stored as integers."""
        return self.activation_bits == FLOAT_BITS


@dataclass(frozen=True, slots=True)
class LayerBits:
    """Bit widths of one layer: of its weight, and of the activations that it reads."""

    weight: int
    activation: int

    def __post_init__(self) -> None:
        if not 2 <= self.weight <= 8 or not (
            2 <= self.activation <= 8 or self.activation == FLOAT_BITS
        ):
            raise ConfigError(
                f"bit widths {self.weight} and {self.activation}: weights take 2 to 8, "
                f"activations 2 to 8 or {FLOAT_BITS} (float)"
            )

    def widest(self, other: LayerBits) -> LayerBits:
        """Return the wider of both in each part."""
        return LayerBits(max(self.weight, other.weight), max(self.activation, other.activation))


SCHEMES: Mapping[str, QuantScheme] = {
    "w8a8": QuantScheme("w8a8", 8, 8),
    "w4a8": QuantScheme("w4a8", 4, 8),
    "w4a4": QuantScheme("w4a4", 4, 4),
    "w4a16": QuantScheme("w4a16", 4, FLOAT_BITS),
    "w8a16": QuantScheme("w8a16", 8, FLOAT_BITS),
    "mixed": QuantScheme("mixed", 8, 8),
}
"""``mixed`` has the widths of layers that nothing else is decided for."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """Files that a target's exporter wrote, relative to the result directory.

    ``model`` is the file a runtime opens; ``notes`` say what the user must know about it.
    """

    target: str
    model: str
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExecutedLayer:
    """What a runtime really runs for one layer, read back from the runtime itself."""

    name: str
    op: str
    precision: str  # "int8", "float32", "float16", ...


class Runner(Protocol):
    """An artifact opened by its own runtime. A context manager that owns its memory."""

    def __enter__(self) -> Runner: ...

    def __exit__(self, *exc: object) -> None: ...

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once: input name to array, output name to array."""
        ...

    def executed_layers(self) -> list[ExecutedLayer]:
        """Weighted layers (convolution, matrix product) with their executed precision."""
        ...


Progress = Callable[[str, float], None]
"""Called with a stage name and the finished fraction of the whole job, 0 to 1."""


def no_progress(_stage: str, _fraction: float) -> None:
    """A :data:`Progress` that shows nothing."""


def _only(data: Mapping[str, Any], what: str, known: tuple[str, ...]) -> None:
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(
            f"{what}: unknown key {', '.join(map(repr, unknown))}",
            f"known keys: {', '.join(known)}",
        )
