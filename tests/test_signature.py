from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgekit.errors import ConfigError  # noqa: E402
from edgekit.options import parse_input  # noqa: E402
from edgekit.signature import ForwardSignature, resolve_inputs  # noqa: E402
from edgekit.types import InputSpec  # noqa: E402


class One(nn.Module):
    def forward(self, x: Any) -> Any: ...


class Two(nn.Module):
    def forward(self, image: Any, ids: Any, scale: Any = None) -> Any: ...


class Many(nn.Module):
    def forward(self, *tensors: Any) -> Any: ...


class FirstAndMany(nn.Module):
    def forward(self, first: Any, *rest: Any) -> Any: ...


class ByName(nn.Module):
    def forward(self, x: Any, *, mask: Any) -> Any: ...


class NoInput(nn.Module):
    def forward(self) -> Any: ...


def names(network: nn.Module, *texts: str, declared: tuple[InputSpec, ...] = ()) -> list[str]:
    """Resolve and show each input as NAME:FIRST_SIZE, which tells the options apart."""
    resolved = resolve_inputs(network, [parse_input(text) for text in texts], declared)
    return [f"{spec.name}:{spec.shape[0]}" for spec in resolved]


DECLARED = (InputSpec("photo", (1, 3)), InputSpec("tokens", (2, 5), "int64"))


@pytest.mark.parametrize(
    ("network", "texts", "declared", "expected"),
    [
        (One(), ["7"], (), ["x:7"]),
        (One(), ["x:7"], (), ["x:7"]),
        (Two(), ["7", "8"], (), ["image:7", "ids:8"]),
        (Two(), ["7", "8", "9"], (), ["image:7", "ids:8", "scale:9"]),
        (Two(), ["ids:7", "image:8"], (), ["image:8", "ids:7"]),
        (Two(), ["7", "image:8"], (), ["image:8", "ids:7"]),
        (Many(), ["7", "8"], (), ["input_0:7", "input_1:8"]),
        (Many(), ["a:7", "8"], (), ["a:7", "input_1:8"]),
        (FirstAndMany(), ["7", "8"], (), ["first:7", "input_1:8"]),
        (Two(), [], DECLARED, ["photo:1", "tokens:2"]),
        (Two(), ["7"], DECLARED, ["photo:7", "tokens:2"]),
        (Two(), ["tokens:7"], DECLARED, ["photo:1", "tokens:7"]),
        (Two(), ["ids:7"], DECLARED, ["photo:1", "ids:7"]),
        (Two(), ["scale:7"], DECLARED, ["photo:1", "tokens:2", "scale:7"]),
        (Two(), ["7", "8", "9"], DECLARED, ["photo:7", "tokens:8", "scale:9"]),
    ],
)
def test_names_and_order(
    network: nn.Module, texts: list[str], declared: tuple[InputSpec, ...], expected: list[str]
) -> None:
    assert names(network, *texts, declared=declared) == expected


def test_everything_of_an_option_is_kept() -> None:
    resolved = resolve_inputs(One(), [parse_input("1x50~:int64")], ())
    assert resolved == (InputSpec("x", (1, 50), "int64", (1,)),)


@pytest.mark.parametrize(
    ("network", "texts", "declared", "said", "hint"),
    [
        (One(), [], (), "the shape of input x is not known", "--input 1x3x224x224"),
        (
            Two(),
            ["7"],
            (),
            "the shape of input ids is not known",
            "--input image:1x3x224x224 --input ids:1x3x224x224",
        ),
        (Two(), [], (), "the shape of input image, ids is not known", "--input ids:"),
        (Two(), ["7", "scale:8"], (), None, None),
        (Two(), ["scale:8"], DECLARED[:1], "the shape of input ids is not known", "--input ids:"),
        (Many(), [], (), "the shape of input input_0 is not known", "--input 1x3x224x224"),
        (One(), ["y:7"], (), "--input y: the network has no input of that name", "inputs are: x"),
        (
            Two(),
            ["y:7"],
            DECLARED,
            "no input of that name",
            "its inputs are: photo, tokens, image, ids, scale",
        ),
        (One(), ["x:7", "x:8"], (), "--input x is given twice", ""),
        (Two(), ["image:7", "photo:8"], DECLARED, "is given twice", ""),
        (One(), ["7", "8"], (), "--input is given 2 times, but the network takes 1: x", ""),
        (One(), [], DECLARED, "2 inputs are declared, but .* takes 1", ""),
        (NoInput(), ["7"], (), "--input is given 1 times, but the network takes 0", ""),
        (Many(), ["a:7", "a:8"], (), "two inputs have the same name: a, a", ""),
        (ByName(), ["7"], (), "ByName.forward needs 'mask' by name", "wrap the network"),
    ],
)
def test_what_is_missing_or_wrong(
    network: nn.Module,
    texts: list[str],
    declared: tuple[InputSpec, ...],
    said: str | None,
    hint: str | None,
) -> None:
    expected = said or "the shape of input ids is not known"
    with pytest.raises(ConfigError, match=expected) as caught:
        names(network, *texts, declared=declared)
    assert (hint or "") in caught.value.hint


def test_signature_is_read_from_the_forward_pass() -> None:
    assert ForwardSignature.of(Two()) == ForwardSignature(("image", "ids", "scale"), 2, False)
    assert ForwardSignature.of(FirstAndMany()) == ForwardSignature(("first",), 1, True)
