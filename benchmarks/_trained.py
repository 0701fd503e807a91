"""A small vision transformer, trained on the spot: no shared weights are of a network of products.

Weights drawn at random would have no class to keep and no structure that rounding could lose.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_FILE = "cifar10_train_lossless.npz"
_EPOCHS, _BATCH, _RATE = 8, 100, 1e-3


class _Block(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm and added to its input."""

    def __init__(self, wide: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(wide), nn.LayerNorm(wide)
        self.qkv, self.out = nn.Linear(wide, 3 * wide), nn.Linear(wide, wide)
        self.widen, self.narrow = nn.Linear(wide, 4 * wide), nn.Linear(4 * wide, wide)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.norm1(x))
        y: Tensor = x + self.narrow(F.gelu(self.widen(self.norm2(x))))
        return y

    def _attention(self, x: Tensor) -> Tensor:
        batch, tokens, wide = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.heads, wide // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, tokens, wide))
        return y


class SmallTransformer(nn.Module):
    """Patches of 8 x 8 pixels, learned positions, two blocks, the mean over tokens."""

    def __init__(self, wide: int = 256, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, wide, 8, stride=8)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, wide))
        self.blocks = nn.Sequential(*(_Block(wide, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(wide), nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        y: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return y


def needed_file() -> str:
    """Return the name of the training set below the data folder."""
    return _FILE


def trained_transformer(data: Path, epochs: int = _EPOCHS) -> nn.Module:
    """Train the transformer on 3000 images of 32 x 32, one or two minutes on a CPU.

    Args:
        data: folder of the evaluation data.
        epochs: passes over the images.
    """
    with np.load(data / _FILE, allow_pickle=False) as archive:
        pixels, labels = archive["images"], archive["labels"]
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    classes = torch.from_numpy(labels.astype(np.int64))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SmallTransformer()
        steps = epochs * (len(images) // _BATCH)
        optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        for _ in range(epochs):
            for picked in torch.randperm(len(images)).split(_BATCH):
                if len(picked) < _BATCH:
                    continue
                batch = images[picked]
                batch = batch.flip(-1) if bool(torch.rand(()) < 0.5) else batch
                loss = F.cross_entropy(network(batch), classes[picked])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return network.eval()
