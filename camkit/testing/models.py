"""Small models with random weights: one convolutional, one with attention, each with its adapter."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camkit.adapter import Adapter, Position

CLASSES = 5
SIZE = 24


class SmallConvNet(nn.Module):
    """Three convolutions, ReLU in place, and a head that is no linear one: maps [B, channels, 6, 6] of images 24x24."""

    adapter = Adapter(
        name="small.convnet", targets={"last": Position(path=("features",))}, layout="NCHW", classifier=("classifier",)
    )

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, channels, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.neck = nn.Sequential(nn.Conv2d(channels, 10, 3, padding=1), nn.SiLU())
        self.classifier = nn.Linear(10, CLASSES)
        randomise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 5]."""
        logits: Tensor = self.classifier(self.neck(self.features(images)).mean(dim=(2, 3)))
        return logits


class SmallPooledNet(nn.Module):
    """Convolutions, global average pooling and one linear layer: where CAM is defined."""

    adapter = SmallConvNet.adapter

    def __init__(self) -> None:
        super().__init__()
        self.features = SmallConvNet().features
        self.classifier = nn.Linear(8, CLASSES)
        randomise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 5]."""
        logits: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        split = self.qkv(self.norm1(tokens)).reshape(batch, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(batch, count, width)
        tokens = tokens + self.projection(mixed)
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result


class SmallTransformer(nn.Module):
    """A vision transformer with a class token: 4x4 patches for images of 24x24, three blocks."""

    adapter = Adapter(
        name="small.transformer",
        targets={"last": Position(path=("blocks.-1.norm1",))},
        layout="tokens",
        prefix=1,
        patch=6,
        classifier=("classifier",),
    )

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 6, stride=6)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.ModuleList(_Block(width, 2) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, CLASSES)
        randomise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 5]."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(images.shape[0], -1, -1), patches], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.classifier(self.norm(tokens)[:, 0])
        return logits


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fills a model with seeded random weights of a size that keeps activations near 1, and calls eval()."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        scale = parameter[0].numel() ** -0.5 * 1.5 if parameter.ndim > 1 and len(parameter) > 1 else 0.3
        parameter.normal_(0, scale, generator=generator)
        if name.endswith("weight") and parameter.ndim == 1:
            parameter.add_(1)
    module.eval()


def random_images(count: int = 3, size: int = SIZE) -> Tensor:
    """Seeded random images [count, 3, size, size] in [0, 1)."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))
