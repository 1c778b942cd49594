"""A small Llama-2 language model (Touvron et al., arXiv 2307.09288; the sizes are tinyllamas stories260K)."""

import torch
from torch import nn
from torch.nn import functional as F


def rotary_angles(length: int, head_dim: int, device: torch.device) -> torch.Tensor:
    """Angles ``position * 10000^(-2i / head_dim)``, ``(length, head_dim / 2)`` (arXiv 2104.09864, 3.2)."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    positions = torch.arange(length, device=device, dtype=torch.float32)
    return torch.outer(positions, torch.pow(10000.0, -exponents))


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn adjacent pairs of the last dimension of ``x`` ``(N, heads, length, head_dim)`` by ``angles``."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (N, heads, length, head_dim / 2)
    cos, sin = angles.cos(), angles.sin()
    turned: torch.Tensor = torch.stack(
        [a * cos - b * sin, a * sin + b * cos], -1
    )  # (N, heads, length, head_dim / 2, 2)
    return turned.flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Causal attention in which several query heads in turn share one key and value head."""

    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads.transpose(1, 2)  # (N, heads, length, head_dim)

    def forward(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """``(N, length, dim)`` to the same shape."""
        query, key, value = self._heads(self.wq(x)), self._heads(self.wk(x)), self._heads(self.wv(x))
        repeats = query.shape[1] // key.shape[1]
        query, key = rotate(query, angles), rotate(key, angles).repeat_interleave(repeats, 1)
        value = value.repeat_interleave(repeats, 1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out: torch.Tensor = self.wo(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """SwiGLU: ``w2(silu(w1 x) * w3 x)`` (Shazeer, arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, length, dim)`` to the same shape."""
        out: torch.Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each on a normalised copy and added back."""

    def __init__(self, dim: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, eps=1e-5)
        self.attention = Attention(dim, heads, kv_heads)
        self.ffn_norm = nn.RMSNorm(dim, eps=1e-5)
        self.feed_forward = FeedForward(dim, hidden)

    def forward(self, x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
        """``(N, length, dim)`` to the same shape."""
        x = x + self.attention(self.attention_norm(x), angles)
        out: torch.Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Llama(nn.Module):
    """Decoder-only language model whose output matrix is its embedding."""

    def __init__(
        self,
        vocabulary: int = 512,
        dim: int = 64,
        depth: int = 5,
        heads: int = 8,
        kv_heads: int = 4,
        hidden: int = 172,
    ) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(TransformerBlock(dim, heads, kv_heads, hidden) for _ in range(depth))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head_dim = dim // heads
        nn.init.normal_(self.tok_embeddings.weight, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens ``(N, length)`` to logits ``(N, length, vocabulary)`` of the token after each."""
        x = self.tok_embeddings(tokens)
        angles = rotary_angles(tokens.shape[1], self.head_dim, tokens.device)
        for layer in self.layers:
            x = layer(x, angles)
        return F.linear(self.norm(x), self.tok_embeddings.weight)
