"""Which targets a run writes: those that the user names, or all that run the scheme here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from edgekit.allocation import allocate
from edgekit.errors import ConfigError, UnsupportedError
from edgekit.recipe import Recipe, scheme_named
from edgekit.registry import TARGETS, resolve
from edgekit.target import Target
from edgekit.types import SCHEMES, LayerBits

_ALWAYS = frozenset({8})  # activations that single layers of any scheme may keep


def target_named(name: str) -> Target:
    """Return the target of a registered name."""
    target: Target = resolve(TARGETS, name, "target")()
    return target


def usable_targets(names: Sequence[str] | None, scheme: str) -> tuple[str, ...]:
    """Return the targets to write: those named, or all that run a scheme and can be written here.

    Raises:
        ConfigError: an unknown scheme or target, or a target named twice.
        UnsupportedError: a named target does not run the scheme.
        MissingDependencyError: the runtime of a named target is not installed.
    """
    bits = scheme_named(scheme).activation_bits
    if names is None:
        fitting = (target_named(name) for name in TARGETS)
        return tuple(t.name for t in fitting if bits in t.activation_bits and t.missing() is None)
    if len(set(names)) != len(names) or not names:
        raise ConfigError(f"--targets {','.join(names)}: name each target once")
    for name in names:
        target = target_named(name)
        if bits not in target.activation_bits:
            raise _unfit(target, scheme)
        missing = target.missing()
        if missing is not None:
            raise missing
    return tuple(names)


def check_bits(graph: fx.Graph, recipe: Recipe) -> None:
    """Check the bit widths of every layer before any work is done with them.

    Args:
        graph: the captured graph.
        recipe: its targets and bit widths.

    Raises:
        ConfigError: widths are chosen for a layer that is not there.
        UnsupportedError: a target cannot run the activations of a layer.
    """
    scheme = scheme_named(recipe.scheme)
    widths = allocate(graph, scheme, end_bits=recipe.end_bits, chosen=recipe.bits)
    check_widths(widths, recipe.targets)


def check_widths(widths: Mapping[str, LayerBits], targets: Sequence[str]) -> None:
    """Check that every target runs the activations of every layer.

    Args:
        widths: bits of each layer by name.
        targets: names of the targets.

    Raises:
        UnsupportedError: one does not.
    """
    for target in map(target_named, targets):
        able = target.activation_bits | _ALWAYS
        for layer, bits in widths.items():
            if bits.activation not in able:
                nearest = min(able, key=lambda width: (abs(width - bits.activation), -width))
                raise UnsupportedError(
                    f"layer '{layer}': target '{target.name}' does not run activations of "
                    f"{bits.activation} bits",
                    f'nearest possible: "bits": {{"{layer}": [{bits.weight}, {nearest}]}}',
                )


def _unfit(target: Target, scheme: str) -> UnsupportedError:
    asked = SCHEMES[scheme]
    able = [other for other in SCHEMES.values() if other.activation_bits in target.activation_bits]
    nearest = min(
        able,
        key=lambda other: (
            abs(other.weight_bits - asked.weight_bits),
            abs(other.activation_bits - asked.activation_bits),
        ),
        default=None,
    )
    hint = "leave out --targets"
    if nearest is not None:
        hint = f"nearest possible: --scheme {nearest.name}; or leave out --targets"
    return UnsupportedError(
        f"target '{target.name}' does not run scheme '{scheme}': it takes activations of "
        f"{_widths(sorted(target.activation_bits))} bits, not {asked.activation_bits}",
        hint,
    )


def _widths(bits: Sequence[int]) -> str:
    if len(bits) > 2 and bits[-1] - bits[0] == len(bits) - 1:
        return f"{bits[0]} to {bits[-1]}"
    return " or ".join(map(str, bits))
