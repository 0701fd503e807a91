"""Products with parameters become linear layers; other products stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from edgekit.capture import CapturedModel

Capture = Callable[..., CapturedModel]
Operators = Callable[[CapturedModel], list[str]]
Parameters = Callable[[CapturedModel], dict[str, Tensor]]


class Product(nn.Module):
    def __init__(self, form: Callable[[Tensor, Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.form = form
        self.weight, self.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x, self.weight, self.bias)


FORMS: dict[str, tuple[nn.Module, tuple[int, ...], list[str]]] = {
    "x @ W": (Product(lambda x, w, b: x @ w, 4, 6), (4,), ["linear"]),
    "x @ W.T": (Product(lambda x, w, b: x @ w.T, 6, 4), (4,), ["linear"]),
    "x @ W.t()": (Product(lambda x, w, b: x @ w.t(), 6, 4), (4,), ["linear"]),
    "sequence": (Product(lambda x, w, b: x @ w, 4, 6), (5, 4), ["linear"]),
    "mm": (Product(lambda x, w, b: torch.mm(x, w), 4, 6), (4,), ["linear"]),
    "transposed square": (
        Product(lambda x, w, b: x @ w.permute(1, 0), 4, 4),
        (4,),
        ["linear"],
    ),
    "square": (Product(lambda x, w, b: x @ w.permute(0, 1), 4, 4), (4,), ["linear"]),
    "x @ W + b": (Product(lambda x, w, b: x @ w + b, 4, 6), (5, 4), ["linear"]),
    "b + x @ W": (Product(lambda x, w, b: b[None] + x @ w, 4, 6), (5, 4), ["linear"]),
    "addmm": (Product(lambda x, w, b: torch.addmm(b, x, w), 4, 6), (4,), ["linear"]),
    "W @ x": (
        Product(lambda x, w, b: w @ x, 3, 5),
        (5, 4),
        ["transpose", "linear", "transpose"],
    ),
    "chain": (Product(lambda x, w, b: x @ w @ w, 4, 4), (4,), ["linear", "linear"]),
    "scaled bias": (
        Product(lambda x, w, b: torch.addmm(b, x, w, beta=2), 4, 6),
        (4,),
        ["addmm"],
    ),
    "batch of matrices": (Product(lambda x, w, b: x @ w, 3, 4, 6), (3, 5, 4), ["matmul"]),
    "vector": (Product(lambda x, w, b: x @ b, 1, 1), (5, 6), ["matmul"]),
    "activations": (
        Product(lambda x, w, b: x @ x.transpose(1, 2), 1, 1),
        (5, 4),
        ["transpose", "matmul"],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_product_with_a_parameter(captured: Capture, operators: Operators, name: str) -> None:
    module, shape, expected = FORMS[name]
    assert operators(captured(module, shape)) == expected


def test_weight_is_stored_as_a_linear_layer_has_it(
    captured: Capture, parameters: Parameters
) -> None:
    module = Product(lambda x, w, b: x @ w + b, 4, 6)
    found = parameters(captured(module, (4,)))
    assert set(found) == {"weight", "bias"}
    assert torch.equal(found["weight"], module.weight.detach().T)


def test_bias_for_another_axis_is_no_bias(captured: Capture, operators: Operators) -> None:
    module = Product(lambda x, w, b: x @ w + b[:5, None], 4, 6)
    assert operators(captured(module, (5, 4))) == ["linear", "add"]


def test_product_read_twice_keeps_its_sum(captured: Capture, operators: Operators) -> None:
    def form(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = x @ weight
        return (y + bias) * y

    assert operators(captured(Product(form, 4, 6), (4,))) == ["linear", "add", "mul"]
