"""From a file of weights, or of a whole network, to a network that is ready to be captured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import nn

from edgekit.architecture import parse_arch
from edgekit.capture import CapturedModel, capture, first_output
from edgekit.errors import CaptureError, ConfigError
from edgekit.files.reader import read_file
from edgekit.files.wording import printable
from edgekit.network import Request, build_network
from edgekit.options import InputOption
from edgekit.trusted import open_trusted
from edgekit.types import InputSpec, Preprocessing, Task


@runtime_checkable
class ClassTaught(Protocol):
    """A network that learned classes which it does not put out, and still has their classifier."""

    def class_teacher(self) -> nn.Module:
        """Return a network of the same inputs and weights whose output are the class logits."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network with its weights and all that was stated about it.

    ``module`` is in evaluation mode, float32, on the CPU. ``inputs`` are in the order of its
    forward pass. ``arch`` says what built it. ``source`` says what the file was: ``checkpoint``
    (edgekit's own), ``state_dict``, ``safetensors``, ``exported_program``, ``torchscript`` or
    ``pickled_network``. ``sha256`` is the file's. ``notes`` are for the user.
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

    def capture(self) -> CapturedModel:
        """Capture the network with all that is known of it.

        Raises:
            CaptureError: it cannot be captured.
        """
        return capture(
            self.module,
            self.inputs,
            task=self.task,
            preprocessing=self.preprocessing,
            num_classes=self.num_classes,
        )

    def capture_teacher(self) -> CapturedModel | None:
        """Capture the classifier that a network has beside its outputs, ``None`` without one.

        It sees the same inputs, so what is synthesized for its classes is meant for the network.

        Raises:
            CaptureError: it cannot be captured.
        """
        if not isinstance(self.module, ClassTaught):
            return None
        return capture(
            self.module.class_teacher(),
            self.inputs,
            task=Task.CLASSIFICATION,
            preprocessing=self.preprocessing,
        )


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    inputs: Sequence[InputOption] = (),
    preprocessing: Preprocessing | None = None,
    task: Task | None = None,
    trust_pickle: bool = False,
    weights: str | None = None,
) -> LoadedModel:
    """Open a file, recognised by its content, and return its network.

    Nothing in the file is run. What the caller gives overrides what the file or the zoo says.

    Args:
        path: an edgekit checkpoint, a state dict or training checkpoint (torch.save of any age,
            safetensors), a torch.export archive, or TorchScript.
        arch: ``zoo:NAME`` or ``module:factory(width=0.75)``; needed where the file holds weights
            alone. The current directory is importable.
        inputs: shapes of the network's inputs.
        preprocessing: how an image becomes the first input.
        task: what the first output means. Where nothing states it, one row of several numbers is
            taken for the scores of classes, and anything else for no more than numbers.
        trust_pickle: open also what runs code when it is opened, such as a pickled network.
        weights: which of several sets of weights in the file, such as ``ema``.

    Raises:
        ConfigError: something is missing, or the options contradict each other.
        LoadError: the file is not what it should be, or its weights do not fit.
        UnsafeFileError: opening the file would run code.
    """
    path = Path(path)
    architecture = None if arch is None else parse_arch(arch)
    request = Request(printable(str(path), 300), architecture, inputs, weights)
    content = read_file(path, program=weights, open_trusted=open_trusted if trust_pickle else None)
    network = build_network(content, request)
    chosen = preprocessing or network.preprocessing
    if chosen is not None:
        _check_preprocessing(chosen, network.inputs[0])
    notes = network.notes
    if content.trusted:
        notes += ("the file was trusted: opening it ran the code that it contains",)
    chosen_task = task or network.task
    if chosen_task is None:
        chosen_task, note = _assumed_task(network.module, network.inputs)
        notes += (note,)
    return LoadedModel(
        network.module,
        network.inputs,
        chosen,
        chosen_task,
        network.num_classes,
        network.arch,
        network.source,
        content.sha256,
        notes,
    )


def _assumed_task(module: nn.Module, inputs: Sequence[InputSpec]) -> tuple[Task, str]:
    """Return what the network seems to be for, and a note that says so."""
    try:
        output = first_output(module, inputs)
    except CaptureError:  # whoever captures the network will report it
        output = None
    stated = "the task is not stated: taken as"
    if output is None:
        return Task.OTHER, f"{stated} {Task.OTHER.value}"
    shape = tuple(output.shape)
    if len(shape) == 2 and shape[0] == 1 and shape[1] > 1 and output.dtype.is_floating_point:
        return Task.CLASSIFICATION, f"{stated} {Task.CLASSIFICATION.value}"
    shown = "x".join(map(str, shape)) or "a single number"
    return Task.OTHER, f"{stated} {Task.OTHER.value}, because the first output is {shown}"


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
