"""A transformer for shop signs: wide pictures, cut into tall patches; it is in no model library."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camkit.models import BuiltModel
from camkit.preprocessing import Preprocessing

SIZE = (96, 192)
CLASSES = ("bakery", "bookshop", "café", "chemist", "florist", "hotel")


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, width] to [B, N, width]."""
        batch, count, width = tokens.shape
        query, key, value = self.qkv(tokens).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.projection(mixed.transpose(1, 2).reshape(batch, count, width))
        return projected


class Block(nn.Module):
    """Attention, then two linear layers for each token, each behind a norm and beside a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, 2 * width), nn.GELU())
        self.out = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, width] to [B, N, width]."""
        tokens = tokens + self.attention(self.norm1(tokens))
        block: Tensor = tokens + self.out(self.mlp(self.norm2(tokens)))
        return block


class SignTransformer(nn.Module):
    """A convolutional stem, patches of 16 x 8 pixels, a class token and two registers in front of them, four blocks.

    Letters are taller than wide, and so are the patches: a picture of 96 x 192 pixels has 6 x 24 of them.
    """

    patch_size = (16, 8)
    num_prefix_tokens = 3

    def __init__(self, num_classes: int = len(CLASSES), width: int = 48, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        rows, columns = (pixels // side for pixels, side in zip(SIZE, self.patch_size, strict=True))
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.GELU(),
        )
        self.patches = nn.Conv2d(32, width, kernel_size=(4, 2), stride=(4, 2))
        self.prefix = nn.Parameter(0.02 * torch.randn(1, self.num_prefix_tokens, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, rows * columns, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits [B, classes] of images [B, 3, 96, 192]."""
        patches = self.patches(self.stem(images)).flatten(2).transpose(1, 2) + self.positions
        # shape[0], not len(): in an exported graph len() would be the number of images that it was traced with
        tokens = torch.cat([self.prefix.expand(patches.shape[0], -1, -1), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return {"logits": self.head(self.norm(tokens)[:, 0])}


def build(num_classes: int = len(CLASSES)) -> BuiltModel:
    """What ``--model python:my_model:build`` calls."""
    preprocessing = Preprocessing(size=SIZE, resize=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    names = CLASSES if num_classes == len(CLASSES) else None
    return BuiltModel(SignTransformer(num_classes), preprocessing, class_names=names)
