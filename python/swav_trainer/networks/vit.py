"""Vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), with timm's names."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from swav_trainer.networks.recompute import run

PATCH = 16  # pixels of a side
VITS = {"vit_s16": (384, 12, 6), "vit_b16": (768, 12, 12)}  # channels, blocks, heads


class Attention(nn.Module):
    """Self-attention over all patches."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> the same."""
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*qkv)  # [B, heads, N, dim / heads]
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers, the hidden one four times as wide."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> the same."""
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A linear map of each patch."""

    def __init__(self, num_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(num_channels, dim, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, dim, H / 16, W / 16]."""
        return self.proj(x)


class ViT(nn.Module):
    """Vision transformer up to the class token; crops of other sizes interpolate the places.

    Args:
        num_channels: of the images.
        image_size: pixels of the images whose patches have places of their own.
        dim: channels.
        depth: blocks.
        heads: of the attention.
        recompute: keep the activations between blocks only.
    """

    def __init__(
        self,
        num_channels: int,
        image_size: int,
        dim: int,
        depth: int,
        heads: int,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.dim = dim
        self.grid = image_size // PATCH
        self.patch_embed = PatchEmbed(num_channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.grid**2, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        for x in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(x, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> features [B, dim]."""
        patches = self.patch_embed(x)
        tokens = (patches + self._places(*patches.shape[2:])).flatten(2).transpose(1, 2)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first, tokens], 1)
        for block in self.blocks:
            x = run(block, x, self.recompute)
        return self.norm(x)[:, 0]

    def _places(self, height: int, width: int) -> Tensor:
        """Embedding of the places of a grid, [1, dim, height, width]."""
        places = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        if (height, width) == (self.grid, self.grid):
            return places
        return functional.interpolate(places, (height, width), mode="bicubic", antialias=True)
