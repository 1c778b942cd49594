"""A small vision transformer for 32x32 images (Dosovitskiy et al., arXiv 2010.11929)."""

import torch
from torch import nn


class PatchEmbedding(nn.Module):
    """Non-overlapping patches of ``patch`` x ``patch`` pixels, each mapped to ``dim`` numbers."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, 3, H, W)`` to ``(N, H / patch * W / patch, dim)``, row by row."""
        tokens: torch.Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class CifarViT(nn.Module):
    """Patch 4, dimension 128, six post-norm encoder layers of eight heads, a class token in front."""

    def __init__(self, dim: int = 128, depth: int = 6, heads: int = 8, hidden: int = 256) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(4, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 65, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, hidden, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, depth)
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, 3, 32, 32)`` to logits ``(N, 10)``."""
        tokens = self.patch_embed(x)  # (N, 64, dim)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1) + self.pos_embed
        logits: torch.Tensor = self.mlp_head(self.transformer(tokens)[:, 0])
        return logits
