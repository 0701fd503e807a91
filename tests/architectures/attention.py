"""Networks with LayerNorm and GELU, with attention and without."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from architectures.parts import CLASSES


class ConvNextBlock(nn.Module):
    """Large depthwise convolution, LayerNorm over channels, a perceptron, a learned scale."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(wide, wide, 7, padding=3, groups=wide)
        self.norm = nn.LayerNorm(wide)
        self.widen = nn.Linear(wide, 4 * wide)
        self.narrow = nn.Linear(4 * wide, wide)
        self.scale = nn.Parameter(torch.full((wide,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(F.gelu(self.widen(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """A convolutional network in the manner of transformers (Liu et al., 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, stride=4)
        self.blocks = nn.Sequential(ConvNextBlock(32), ConvNextBlock(32))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x)).mean([-2, -1])))


class Attention(nn.Module):
    """Self-attention with one layer for queries, keys and values."""

    def __init__(self, wide: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(wide, 3 * wide)
        self.out = nn.Linear(wide, wide)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, wide = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, self.heads, wide // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, wide))


class VitBlock(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm and added to its input."""

    def __init__(self, wide: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(wide), nn.LayerNorm(wide)
        self.attention = Attention(wide, heads)
        self.mlp = nn.Sequential(nn.Linear(wide, 2 * wide), nn.GELU(), nn.Linear(2 * wide, wide))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Patches, a class token, learned positions, attention (Dosovitskiy et al., 2021)."""

    def __init__(self, wide: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, wide, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, wide))
        self.positions = nn.Parameter(0.2 * torch.randn(1, 17, wide))
        self.blocks = nn.Sequential(VitBlock(wide, 4), VitBlock(wide, 4))
        self.norm = nn.LayerNorm(wide)
        self.head = nn.Linear(wide, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class TransformerEncoder(nn.Module):
    """PyTorch's own encoder layer over a sequence of features (Vaswani et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))
