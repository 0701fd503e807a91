"""From a file of weights to a network that is ready to be captured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from edgekit.architecture import Architecture, parse_arch
from edgekit.checkpoint import Checkpoint, is_checkpoint, read_checkpoint
from edgekit.errors import ConfigError, LoadError
from edgekit.files.reader import read_file
from edgekit.files.recognize import FileKind
from edgekit.files.wording import printable
from edgekit.options import InputOption
from edgekit.signature import resolve_inputs
from edgekit.state_dict import find_state_dict, load_weights
from edgekit.types import InputSpec, Preprocessing, Task


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network with its weights and all that was stated about it.

    ``module`` is in evaluation mode, float32, on the CPU. ``inputs`` are in the order of its
    forward pass. ``source`` says what the file was: ``checkpoint`` (edgekit's own),
    ``state_dict`` or ``safetensors``. ``sha256`` is the file's. ``notes`` are for the user.
    """

    module: nn.Module
    inputs: tuple[InputSpec, ...]
    preprocessing: Preprocessing | None
    task: Task
    num_classes: int | None
    arch: str
    source: str
    sha256: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Stated:
    """What the file, or else the zoo, says about the network."""

    inputs: tuple[InputSpec, ...] = ()
    preprocessing: Preprocessing | None = None
    task: Task | None = None
    num_classes: int | None = None


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    inputs: Sequence[InputOption] = (),
    preprocessing: Preprocessing | None = None,
    task: Task | None = None,
) -> LoadedModel:
    """Open a file of weights, recognised by its content, and build its network.

    Nothing in the file is run. What the caller gives overrides what the file or the zoo says.

    Args:
        path: an edgekit checkpoint, or a state dict as a torch.save or safetensors file.
        arch: ``zoo:NAME`` or ``module:factory(width=0.75)``; needed unless the file is an
            edgekit checkpoint. The current directory is importable.
        inputs: shapes of the network's inputs.
        preprocessing: how an image becomes the first input.
        task: what the first output means.

    Raises:
        ConfigError: something is missing, or the options contradict each other.
        LoadError: the file is not what it should be, or its weights do not fit.
        UnsafeFileError: opening the file would run code.
    """
    path = Path(path)
    architecture = None if arch is None else parse_arch(arch)
    where = printable(str(path), 300)
    content = read_file(path)
    checkpoint = read_checkpoint(content.value, where) if is_checkpoint(content.value) else None
    state: Mapping[str, Tensor]
    if checkpoint is not None:
        state, source = checkpoint.state_dict, "checkpoint"
        architecture = architecture or checkpoint.arch
        stated = _stated_by_file(checkpoint, architecture, where)
    else:
        state = find_state_dict(content.value, where)
        source = "safetensors" if content.kind is FileKind.SAFETENSORS else "state_dict"
        if architecture is None:
            raise _missing_arch(path, where)
        stated = _stated_by_zoo(architecture)
    network = architecture.build()
    notes = load_weights(network, state, where=where, arch=str(architecture))
    resolved = resolve_inputs(network, inputs, stated.inputs)
    chosen = preprocessing or stated.preprocessing
    if chosen is not None:
        _check_preprocessing(chosen, resolved[0])
    chosen_task = task or stated.task
    if chosen_task is None:
        chosen_task = Task.CLASSIFICATION
        notes += ("the task is not stated: taken as classification",)
    return LoadedModel(
        network,
        resolved,
        chosen,
        chosen_task,
        stated.num_classes,
        str(architecture),
        source,
        content.sha256,
        notes,
    )


def _missing_arch(path: Path, where: str) -> ConfigError:
    name = printable(path.name, 60)
    return ConfigError(
        f"{where}: holds weights only; --arch must say which network they belong to",
        f"for example: edgekit quantize {name} --arch zoo:efficientnet_lite0, or --arch "
        "'my_net:build(width=0.75)' --input 1x3x224x224 for build() in my_net.py",
    )


def _stated_by_zoo(architecture: Architecture) -> _Stated:
    if not architecture.is_zoo:
        return _Stated()
    zoo = architecture.zoo_model()
    return _Stated(zoo.inputs, zoo.preprocessing, zoo.task, architecture.num_classes())


def _stated_by_file(checkpoint: Checkpoint, architecture: Architecture, where: str) -> _Stated:
    stated, built = checkpoint.num_classes, architecture.num_classes()
    if architecture is not checkpoint.arch:
        stated = stated if built is None else built  # the user typed another architecture
    elif None not in (stated, built) and stated != built:
        raise LoadError(
            f"{where}: says {stated} classes, but its architecture {architecture} has {built}",
            f"name the count in the architecture: zoo:NAME(num_classes={stated})",
        )
    return _Stated(checkpoint.inputs, checkpoint.preprocessing, checkpoint.task, stated)


def _check_preprocessing(preprocessing: Preprocessing, spec: InputSpec) -> None:
    """Raise where the described image cannot be the input ``spec``."""
    shown = "x".join(map(str, spec.shape))
    if len(spec.shape) != 4:
        raise ConfigError(
            f"preprocessing describes an image, but input '{spec.name}' has shape {shown}",
            "leave out --preprocessing, or give the image's shape with --input 1x3x224x224",
        )
    channels = 1 if preprocessing.color == "gray" else 3
    if spec.shape[1] != channels or max(len(preprocessing.mean), len(preprocessing.std)) > channels:
        raise ConfigError(
            f"preprocessing gives {channels} channels (color={preprocessing.color}), but input "
            f"'{spec.name}' is {shown}",
            "choose color=gray for 1 channel (with one mean and std), rgb or bgr for 3",
        )
    crop = preprocessing.crop
    fixed = [spec.shape[axis] for axis in (2, 3) if axis not in spec.variable_axes]
    if crop is not None and any(size != crop for size in fixed):
        raise ConfigError(
            f"preprocessing crops to {crop}x{crop}, but input '{spec.name}' is {shown}",
            f"make them agree, for example: --input 1x{channels}x{crop}x{crop}",
        )
