"""Name a network's inputs and put them in the order of its forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from edgekit.errors import ConfigError
from edgekit.options import InputOption
from edgekit.types import InputSpec


@dataclass(frozen=True, slots=True)
class ForwardSignature:
    """The positional parameters of a forward pass; the first ``required`` have no default."""

    names: tuple[str, ...]
    required: int
    takes_more: bool

    @classmethod
    def of(cls, network: nn.Module) -> ForwardSignature:
        """Read it from the network.

        Raises:
            ConfigError: the forward pass has a parameter that cannot be given by position.
        """
        parameters = inspect.signature(network.forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        positional = [p for p in parameters if p.kind in kinds]
        by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
        if by_name:
            raise ConfigError(
                f"{type(network).__name__}.forward needs '{by_name[0]}' by name; edgekit passes "
                "inputs by position",
                "wrap the network in one whose forward takes its inputs by position",
            )
        return cls(
            tuple(p.name for p in positional),
            sum(p.default is p.empty for p in positional),
            any(p.kind is p.VAR_POSITIONAL for p in parameters),
        )


def resolve_inputs(
    network: nn.Module | ForwardSignature,
    options: Sequence[InputOption],
    declared: Sequence[InputSpec],
) -> tuple[InputSpec, ...]:
    """Combine what the user typed with what the file or the zoo declares; the user wins.

    Args:
        network: the network, or the names and the order of its forward parameters.
        options: what the user gave with ``--input``. A name places an option; options without
            a name fill the places that are left, in order.
        declared: the inputs that the file or the zoo states, in order; may be empty.

    Raises:
        ConfigError: an input is missing, unknown or given twice.
    """
    signature = network if isinstance(network, ForwardSignature) else ForwardSignature.of(network)
    places: dict[int, InputSpec] = dict(enumerate(declared))
    taken: set[int] = set()
    for option in sorted(options, key=lambda option: option.name is None):
        place = _place(option, signature, declared, taken)
        taken.add(place)
        places[place] = InputSpec(
            option.name or _default_name(place, signature, declared),
            option.shape,
            option.dtype,
            option.variable_axes,
            _multiple(option, declared[place] if place < len(declared) else None),
        )
    _check_complete(places, signature)
    inputs = tuple(places[place] for place in sorted(places))
    names = [spec.name for spec in inputs]
    if len(set(names)) < len(names):
        raise ConfigError(f"two inputs have the same name: {', '.join(names)}")
    return inputs


def _multiple(option: InputOption, declared: InputSpec | None) -> int:
    """Return what sizes must be multiples of: it belongs to the network, other sizes do not."""
    if option.multiple is not None:
        return option.multiple
    return declared.multiple if declared is not None and option.variable_axes else 1


def _place(
    option: InputOption,
    signature: ForwardSignature,
    declared: Sequence[InputSpec],
    taken: set[int],
) -> int:
    if option.name is None or (signature.takes_more and not signature.names):
        place = next(place for place in range(len(taken) + 1) if place not in taken)
        if place >= len(signature.names) and not signature.takes_more:
            raise ConfigError(
                f"--input is given {place + 1} times, but the network takes "
                f"{len(signature.names)}: {', '.join(signature.names)}"
            )
        return place
    declared_names = [spec.name for spec in declared]
    for names in (declared_names, list(signature.names)):
        if option.name in names:
            place = names.index(option.name)
            if place in taken:
                raise ConfigError(f"--input {option.name} is given twice")
            return place
    known = dict.fromkeys([*declared_names, *signature.names])
    raise ConfigError(
        f"--input {option.name}: the network has no input of that name",
        f"its inputs are: {', '.join(known)}",
    )


def _default_name(place: int, signature: ForwardSignature, declared: Sequence[InputSpec]) -> str:
    if place < len(declared):
        return declared[place].name
    return signature.names[place] if place < len(signature.names) else f"input_{place}"


def _check_complete(places: dict[int, InputSpec], signature: ForwardSignature) -> None:
    needed = max(signature.required, max(places, default=-1) + 1, 1)
    if needed > len(signature.names) and not signature.takes_more:
        raise ConfigError(
            f"{needed} inputs are declared, but the network's forward pass takes "
            f"{len(signature.names)}"
        )
    missing = [place for place in range(needed) if place not in places]
    if missing:
        names = [_default_name(place, signature, ()) for place in missing]
        one = needed == 1
        example = (
            "--input 1x3x224x224"
            if one
            else " ".join(
                f"--input {_default_name(place, signature, ())}:1x3x224x224"
                for place in range(needed)
            )
        )
        raise ConfigError(
            f"the shape of input {', '.join(names)} is not known", f"add it, for example: {example}"
        )
