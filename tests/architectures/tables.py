"""Networks over rows of a table: numbers, ids, and both together with an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.parts import CLASSES, ConvNorm


class Mlp(nn.Module):
    """Linear layers, one of them with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(16, 32),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Linear(32, 32),
            nn.ReLU(),
            nn.Linear(32, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Words(nn.Module):
    """An embedding of ids, its mean over the sequence, two linear layers."""

    def __init__(self, rows: int = 100) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 16)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.table(ids).mean(1))))


class Bag(nn.Module):
    """An embedding bag, which takes the mean by itself, and two linear layers."""

    def __init__(self, rows: int = 50) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(rows, 16, mode="mean")
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.bag(ids))))


class ImageAndNumbers(nn.Module):
    """Two inputs: an image, and numbers that gate its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(ConvNorm(3, 16, stride=2), ConvNorm(16, 32))
        self.numbers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 32))
        self.head = nn.Linear(32, CLASSES)

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        seen = self.image(image).mean((2, 3))
        return self.head(seen * torch.sigmoid(self.numbers(numbers)))
