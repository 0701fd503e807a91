"""Find the sets of weights in what a file holds, and choose the one that fits the network.

Trainers put weights under a key (``state_dict``, ``model``), keep a second, averaged set beside
them (``ema``), and wrap the network so that each name gets a prefix (``module.``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekit.errors import ConfigError, LoadError
from edgekit.files.wording import listing, printable
from edgekit.state_dict import Differences, compare

_MAX_DEPTH = 4
_SAVE_STATE_DICT = "save the state dict: torch.save(network.state_dict(), 'weights.pt')"


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to read a file as weights.

    ``keys`` lead to the set in the file; ``prefix`` is taken off each name. ``left_out`` counts
    the tensors whose names have another beginning.
    """

    keys: tuple[str, ...]
    prefix: str
    state: Mapping[str, Tensor]
    left_out: int = 0

    @property
    def name(self) -> str:
        """What the user writes after ``--weights``."""
        place = "/".join(self.keys)
        return f"{place}:{self.prefix}" if place and self.prefix else place or self.prefix

    @property
    def note(self) -> tuple[str, ...]:
        """Tell what was chosen, unless there was nothing to choose."""
        parts = [f"taken from '{'/'.join(self.keys)}'"] if self.keys else []
        parts += [f"without the '{self.prefix}' before their names"] if self.prefix else []
        parts += [f"without {self.left_out} tensors of other parts"] if self.left_out else []
        return (printable(f"the weights are {', '.join(parts)}", 300),) if parts else ()


def find_readings(value: object, where: str) -> tuple[Reading, ...]:
    """Return every set of weights in ``value``, those closest to the top first, names untouched.

    Raises:
        LoadError: there is none.
    """
    found = sorted(_containers(value, ()), key=lambda reading: len(reading.keys))
    if found:
        return tuple(found)
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise LoadError(f"{where}: holds a {kind}, not a state dict", _SAVE_STATE_DICT)
    odd = [str(k) for k, v in value.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    what = f"entries that are not tensors: {listing(odd)}" if odd else "no tensors"
    raise LoadError(
        f"{where}: is not a state dict: it has {what}",
        "save the state dict alone: torch.save(network.state_dict(), 'weights.pt')",
    )


def _containers(value: object, keys: tuple[str, ...]) -> Iterator[Reading]:
    if isinstance(value, nn.Module):  # only a trusted file holds one
        value = value.state_dict()
    if not isinstance(value, Mapping) or not value or len(keys) > _MAX_DEPTH:
        return
    if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()):
        yield Reading(keys, "", value)
        return
    for key, entry in value.items():
        if isinstance(key, str):
            yield from _containers(entry, (*keys, key))


def choose(
    network: nn.Module,
    readings: Sequence[Reading],
    wanted: str | None,
    *,
    where: str,
    arch: str,
) -> Reading:
    """Return the one set of weights that fits.

    Args:
        network: the freshly built network.
        readings: the sets in the file.
        wanted: the name that the user chose, or ``None``.
        where: the file's name, for messages.
        arch: what the network was built from, for messages.

    Raises:
        ConfigError: several sets fit and none was chosen, or there is no set of the chosen name.
        LoadError: none fits.
    """
    expected = network.state_dict()
    fitting = [
        reading
        for whole in readings
        for reading in _prefixes(whole, expected)
        if not compare(expected, reading.state)
    ]
    if wanted is not None:
        readings = _named(readings, fitting, wanted, where)
        fitting = [reading for reading in fitting if _matches(reading, wanted)]
    if not fitting:
        raise _nothing_fits(expected, readings, where, arch)
    if len(fitting) > 1 and not all(_same(fitting[0], other) for other in fitting[1:]):
        raise ConfigError(
            f"{where}: several sets of weights in it fit {arch}: "
            f"{listing((_shown(reading) for reading in fitting), 8)}",
            f"choose one, for example: --weights {_shown(fitting[-1])}",
        )
    return fitting[0]


def _prefixes(whole: Reading, expected: Mapping[str, Tensor]) -> Iterator[Reading]:
    """Yield the set as it is, and with each prefix under which the network's first name stands."""
    yield whole
    first = next(iter(expected), None)
    for name in whole.state:
        if first is not None and name.endswith(f".{first}"):
            prefix = name.removesuffix(first)
            state = {
                name.removeprefix(prefix): tensor
                for name, tensor in whole.state.items()
                if name.startswith(prefix)
            }
            yield Reading(whole.keys, prefix, state, len(whole.state) - len(state))


def _matches(reading: Reading, wanted: str) -> bool:
    return wanted.rstrip(".") in (reading.name.rstrip("."), "/".join(reading.keys))


def _named(
    readings: Sequence[Reading], fitting: Sequence[Reading], wanted: str, where: str
) -> list[Reading]:
    found = [reading for reading in readings if _matches(reading, wanted)]
    if found or any(_matches(reading, wanted) for reading in fitting):
        return found
    known = dict.fromkeys(_shown(reading) for reading in (*readings, *fitting) if reading.name)
    raise ConfigError(
        f"{where}: has no set of weights named '{printable(wanted)}'",
        f"it has: {listing(known, 8)}" if known else "it has one set: leave out --weights",
    )


def _shown(reading: Reading) -> str:
    return reading.name or "the names without a prefix"


def _same(one: Reading, other: Reading) -> bool:
    return one.state.keys() == other.state.keys() and all(
        torch.equal(tensor, other.state[name]) for name, tensor in one.state.items()
    )


def _nothing_fits(
    expected: Mapping[str, Tensor], readings: Sequence[Reading], where: str, arch: str
) -> LoadError:
    attempts: list[tuple[Reading, Differences]] = [
        (reading, compare(expected, reading.state))
        for whole in readings
        for reading in _prefixes(whole, expected)
    ]
    closest, differences = min(attempts, key=lambda attempt: len(attempt[1]))
    place = f" (read as '{closest.name}')" if closest.name else ""
    return LoadError(
        f"{printable(where + place, 400)} does not fit {arch}: {differences}",
        "check --arch and its arguments, such as zoo:NAME(num_classes=10)",
    )
