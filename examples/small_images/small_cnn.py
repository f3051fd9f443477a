"""A classifier of pictures of 32 x 32 pixels, as anybody might write one; camkit has no adapter for it."""

from torch import Tensor, nn

from camkit.models import BuiltModel
from camkit.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=(32, 32), resize=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Block(nn.Module):
    """A convolution with its norm, beside a second one that corrects the first."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """[B, channels, H, W] to [B, width, H / stride, W / stride]."""
        found = self.relu(self.norm1(self.first(images)))
        block: Tensor = self.relu(found + self.norm2(self.second(found)))
        return block


class SmallCNN(nn.Module):
    """Three blocks, the mean over all positions, a linear layer."""

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            Block(3, width, stride=2), Block(width, 2 * width, stride=1), Block(2 * width, 4 * width, stride=2)
        )
        self.classifier = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, 32, 32]."""
        logits: Tensor = self.classifier(self.blocks(images).mean(dim=(2, 3)))
        return logits


def digits() -> BuiltModel:
    """What ``--model python:small_cnn:digits`` calls."""
    return BuiltModel(SmallCNN(), PREPROCESSING, class_names=DIGITS)


def cifar10() -> BuiltModel:
    """What ``--model python:small_cnn:cifar10`` calls."""
    return BuiltModel(SmallCNN(), PREPROCESSING, class_names=CIFAR10)
