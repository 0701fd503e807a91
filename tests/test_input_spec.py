"""What the sizes of a network's input must be multiples of."""

from __future__ import annotations

import pytest

from edgekit.errors import ConfigError
from edgekit.options import parse_input
from edgekit.signature import ForwardSignature, resolve_inputs
from edgekit.types import InputSpec

DECLARED = InputSpec("image", (1, 3, 256, 256), variable_axes=(2, 3), multiple=4)
SIGNATURE = ForwardSignature(("image",), 1, False)


def test_round_trip() -> None:
    assert InputSpec.from_dict(DECLARED.to_dict()) == DECLARED


def test_files_from_before_have_none() -> None:
    old = {key: value for key, value in DECLARED.to_dict().items() if key != "multiple"}
    assert InputSpec.from_dict(old).multiple == 1


@pytest.mark.parametrize(
    ("shape", "variable", "multiple", "said"),
    [
        ((1, 3, 8, 8), (2, 3), 0, "at least 1"),
        ((1, 3, 8, 8), (), 4, "only for variable axes"),
        ((1, 3, 8, 9), (2, 3), 4, "size 9 of axis 3 is no multiple of 4"),
    ],
)
def test_multiples_that_do_not_fit(
    shape: tuple[int, ...], variable: tuple[int, ...], multiple: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        InputSpec("image", shape, variable_axes=variable, multiple=multiple)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "multiple"),
    [
        ("1x3x128~x128~", 4),  # the sizes are the user's, the multiple is the network's
        ("1x3x128~8x128~8", 8),
        ("1x3x128~1x128~1", 1),
        ("1x3x126x126", 1),
    ],
)
def test_typed_over_declared(text: str, multiple: int) -> None:
    (spec,) = resolve_inputs(SIGNATURE, [parse_input(text)], [DECLARED])
    assert spec.multiple == multiple


def test_typed_size_that_the_network_does_not_take() -> None:
    with pytest.raises(ConfigError, match="size 126 of axis 2") as caught:
        resolve_inputs(SIGNATURE, [parse_input("1x3x126~x128~")], [DECLARED])
    assert caught.value.hint == "nearest above: 128"
