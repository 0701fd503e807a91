"""From what a file holds to a network with weights and named inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from edgekit.architecture import Architecture
from edgekit.checkpoint import Checkpoint, is_checkpoint, read_checkpoint
from edgekit.errors import ConfigError, LoadError
from edgekit.exported_network import exported_network
from edgekit.files.reader import FileContent
from edgekit.files.recognize import FileKind
from edgekit.files.wording import listing, printable
from edgekit.options import InputOption
from edgekit.readings import Reading, choose, find_readings
from edgekit.signature import resolve_inputs
from edgekit.state_dict import check_finite, load_weights
from edgekit.torchscript_network import torchscript_program, torchscript_signature
from edgekit.trusted import unwrapped
from edgekit.types import InputSpec, Preprocessing, Task

# A file may not ask for more: the inputs alone would take gigabytes.
_MAX_STATED_ELEMENTS = 1 << 28


@dataclass(frozen=True, slots=True)
class Network:
    """A network and what the file, or else the zoo, says about it."""

    module: nn.Module
    arch: str
    source: str
    inputs: tuple[InputSpec, ...]
    preprocessing: Preprocessing | None = None
    task: Task | None = None
    num_classes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for."""

    where: str
    architecture: Architecture | None
    inputs: Sequence[InputOption]
    weights: str | None


def build_network(content: FileContent, request: Request) -> Network:
    """Build the network that a file holds, or whose weights it holds.

    Raises:
        ConfigError: something is missing, or the options contradict each other.
        LoadError: the weights do not fit, or the network cannot be rebuilt.
    """
    value = content.value
    if is_checkpoint(value):
        return _from_checkpoint(read_checkpoint(value, request.where), request)
    if request.architecture is not None:
        return _from_weights(content, request.architecture, request)
    match value:
        case ExportedProgram():
            return _from_program(value, "exported_program", "torch.export program", request)
        case torch.jit.ScriptModule():
            return _from_torchscript(value, request)
        case nn.Module():
            return _from_module(value, request)
    readings = find_readings(value, request.where)
    modules = _modules(value, request.weights) if content.trusted else {}
    if len(modules) == 1:
        (key, module), *_ = modules.items()
        found = _from_module(module, request)
        return replace(found, notes=(f"the network is taken from '{key}'", *found.notes))
    raise _missing_arch(request.where, readings, modules)


def _from_checkpoint(checkpoint: Checkpoint, request: Request) -> Network:
    architecture = request.architecture or checkpoint.arch
    if request.weights is not None:
        raise ConfigError(
            f"{request.where}: an edgekit checkpoint has one set of weights",
            "leave out --weights",
        )
    stated, built = checkpoint.num_classes, architecture.num_classes()
    if architecture is not checkpoint.arch:
        stated = stated if built is None else built  # the user typed another architecture
    elif None not in (stated, built) and stated != built:
        raise LoadError(
            f"{request.where}: says {stated} classes, but its architecture {architecture} has "
            f"{built}",
            f"name the count in the architecture: zoo:NAME(num_classes={stated})",
        )
    _check_stated(checkpoint.inputs, request.where)
    module = architecture.build()
    arch = str(architecture)
    notes = load_weights(module, checkpoint.state_dict, where=request.where, arch=arch)
    inputs = resolve_inputs(module, request.inputs, checkpoint.inputs)
    return Network(
        module,
        arch,
        "checkpoint",
        inputs,
        checkpoint.preprocessing,
        checkpoint.task,
        stated,
        notes,
    )


def _from_weights(content: FileContent, architecture: Architecture, request: Request) -> Network:
    where, arch = request.where, str(architecture)
    readings = find_readings(_weights_of(content.value), where)
    module = architecture.build()
    wanted = None if content.kind is FileKind.EXPORTED_PROGRAM else request.weights
    reading = choose(module, readings, wanted, where=where, arch=arch)
    notes = reading.note + load_weights(module, reading.state, where=where, arch=arch)
    source = "safetensors" if content.kind is FileKind.SAFETENSORS else "state_dict"
    if not architecture.is_zoo:
        inputs = resolve_inputs(module, request.inputs, ())
        return Network(module, arch, source, inputs, notes=notes)
    zoo = architecture.zoo_model()
    inputs = resolve_inputs(module, request.inputs, zoo.inputs)
    count = architecture.num_classes()
    return Network(module, arch, source, inputs, zoo.preprocessing, zoo.task, count, notes)


def _weights_of(value: object) -> object:
    """Return the weights of a whole network, for one that ``--arch`` builds."""
    if isinstance(value, ExportedProgram):
        return {**value.state_dict}
    return value


def _from_program(program: ExportedProgram, source: str, arch: str, request: Request) -> Network:
    network = exported_network(program, request.where)
    _check_stated(network.inputs, request.where)
    inputs = resolve_inputs(network.module, request.inputs, network.inputs)
    network.check_inputs(inputs)
    network.guard_batch(inputs)
    check_finite(network.module, request.where)
    return Network(network.module, arch, source, inputs, notes=network.notes)


def _from_torchscript(network: torch.jit.ScriptModule, request: Request) -> Network:
    signature = torchscript_signature(network, request.where)
    inputs = resolve_inputs(signature, request.inputs, ())
    program = torchscript_program(network, inputs, request.where)
    named = [
        InputOption(
            name,
            spec.shape,
            spec.dtype,
            spec.variable_axes,
            None if spec.multiple == 1 else spec.multiple,  # else what the conversion finds
        )
        for name, spec in zip(program.graph_signature.user_inputs, inputs, strict=True)
    ]
    found = _from_program(program, "torchscript", "TorchScript", replace(request, inputs=named))
    own = zip(inputs, found.inputs, strict=True)
    return replace(found, inputs=tuple(replace(one, multiple=got.multiple) for one, got in own))


def _from_module(network: nn.Module, request: Request) -> Network:
    module = unwrapped(network).float().cpu().eval().requires_grad_(False)
    check_finite(module, request.where)
    kind = type(module)
    inputs = resolve_inputs(module, request.inputs, ())
    return Network(module, f"{kind.__module__}:{kind.__qualname__}", "pickled_network", inputs)


def _modules(value: object, wanted: str | None) -> dict[str, nn.Module]:
    """Return the networks in a trusted training checkpoint, by their keys."""
    entries = value.items() if isinstance(value, Mapping) else ()
    found = {str(key): entry for key, entry in entries if isinstance(entry, nn.Module)}
    return found if wanted is None else {k: v for k, v in found.items() if k == wanted}


def _missing_arch(
    where: str, readings: Sequence[Reading], modules: Mapping[str, nn.Module]
) -> ConfigError:
    if modules:
        return ConfigError(
            f"{where}: holds several networks: {listing(modules)}",
            f"choose one, for example: --weights {printable(list(modules)[-1])}",
        )
    places = [reading.name for reading in readings if reading.name]
    under = f" (under {listing(places, 8)})" if places else ""
    name = printable(Path(where).name, 60)
    return ConfigError(
        f"{where}: holds weights only{under}; --arch must say which network they belong to",
        f"for example: edgekit quantize {name} --arch zoo:efficientnet_lite0, or --arch "
        "'my_net:build(width=0.75)' --input 1x3x224x224 for build() in my_net.py",
    )


def _check_stated(inputs: Sequence[InputSpec], where: str) -> None:
    for spec in inputs:
        elements = 1
        for size in spec.shape:
            elements *= size
        if elements > _MAX_STATED_ELEMENTS:
            raise LoadError(
                f"{where}: states an input '{spec.name}' of {elements:,} elements",
                "no network takes that: the file is damaged or made to exhaust memory",
            )
