"""Networks that answer for every position: segmentation and detection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from architectures.parts import ConvNorm


class UNet(nn.Module):
    """Down, up by a transposed convolution, and across (Ronneberger et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = ConvNorm(3, 16)
        self.down2 = ConvNorm(16, 32, stride=2)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.join = ConvNorm(32, 16)
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        across = self.down1(x)
        up = self.up(self.down2(across))
        return torch.tanh(self.out(self.join(torch.cat([across, up], 1))))


class Yolo(nn.Module):
    """A detector in the manner of YOLO: SiLU, two scales, one output for each."""

    def __init__(self, anchors: int = 3, values: int = 6) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            ConvNorm(3, 16, stride=2, act=nn.SiLU), ConvNorm(16, 32, stride=2, act=nn.SiLU)
        )
        self.coarse = ConvNorm(32, 32, stride=2, act=nn.SiLU)
        self.up = nn.Upsample(scale_factor=2)
        self.join = ConvNorm(64, 32, act=nn.SiLU)
        self.fine_head = nn.Conv2d(32, anchors * values, 1)
        self.coarse_head = nn.Conv2d(32, anchors * values, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(x)
        coarse = self.coarse(fine)
        joined = self.join(torch.cat([fine, self.up(coarse)], 1))
        return self.fine_head(joined), self.coarse_head(coarse)
