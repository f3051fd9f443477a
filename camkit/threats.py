"""Threat models: how far an attack may move an image, and the geometry that attacks need of it.

Every size is in pixels of [0, 1]. A norm says what `epsilon` counts:

- ``linf``: no value changes by more than epsilon.
- ``l2``: the change of an image, as one vector, is at most epsilon long.
- ``l0``: at most epsilon positions change, whatever becomes of their channels.
- ``patch``: all that changes lies in one rectangle, which covers at most the share epsilon of the image.
- ``smallest``: anything is allowed, and the smallest change is looked for; its size is its length (L2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from camkit.errors import CamkitError, unknown

# By how much rounding may carry an image out of a ball whose border it stands on: a share of epsilon, and pixels.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6


@dataclass(frozen=True)
class Norm:
    """What a threat model measures and, where it can be said, the steps that lead along it and back.

    Attributes:
        distance: the size of changes [n, C, H, W], one [n] for each image.
        default: the epsilon that is taken where none is given.
        largest: the largest epsilon that makes sense for images of (channels, height, width).
        project: the nearest change within epsilon.
        steepest: the change of size 1 that a gradient [n, C, H, W] rises most along.
    """

    distance: Callable[[Tensor], Tensor]
    default: float
    largest: Callable[[int, int, int], float]
    project: Callable[[Tensor, float], Tensor] | None = None
    steepest: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Threat:
    """What an attack on a batch of images may do.

    Attributes:
        norm: ``linf``, ``l2``, ``l0``, ``patch`` or ``smallest``.
        epsilon: the budget, in the unit of the norm; infinite for ``smallest``.
        original: the images as they are, in [0, 1], [B, C, H, W].
        eight_bit: whether only pictures count that can be saved with 8 bits per channel.
    """

    norm: str
    epsilon: float
    original: Tensor = field(repr=False)
    eight_bit: bool = False

    @classmethod
    def checked(cls, norm: str, epsilon: float | None, original: Tensor, *, eight_bit: bool = False) -> "Threat":
        """A threat model whose budget makes sense.

        Raises:
            CamkitError: the norm is not known, or epsilon is not in its range.
        """
        if norm not in NORMS:
            raise unknown("threat model", norm, NORMS)
        if norm == "smallest":
            if epsilon is not None:
                raise CamkitError(
                    f"Epsilon was {epsilon}, but this attack looks for the smallest change and takes none; compare "
                    f"the result's distances with a budget instead."
                )
            epsilon = math.inf
        found = NORMS[norm]
        given = found.default if epsilon is None else float(epsilon)
        largest = found.largest(*original.shape[1:])
        whole = norm != "l0" or given == int(given) if math.isfinite(given) else norm == "smallest"
        if not 0 < given <= largest or not whole:
            raise CamkitError(f"Epsilon was {epsilon}; {_EXPECTED[norm].format(largest=f'{largest:g}')} is expected.")
        return cls(norm, given, _rounded(original) if eight_bit else original, eight_bit)

    def distance(self, moved: Tensor) -> Tensor:
        """How far images [n * B, C, H, W] were moved, in the unit of the norm, [n * B]."""
        found: Tensor = NORMS[self.norm].distance(moved - self._original(moved))
        return found

    def contains(self, moved: Tensor) -> Tensor:
        """Whether images [n * B, C, H, W] are finite, in [0, 1] and within the budget, bool [n * B]."""
        flat = moved.flatten(1)
        # a comparison with NaN is false
        inside = (flat.amin(dim=1) >= 0) & (flat.amax(dim=1) <= 1)
        return inside & (self.distance(moved) <= self.epsilon * (1 + _RELATIVE) + _ABSOLUTE)

    def project(self, moved: Tensor) -> Tensor:
        """The nearest allowed images to `moved` [n * B, C, H, W].

        Raises:
            CamkitError: the norm has no nearest image that could be computed (``patch``).
        """
        original = self._original(moved)
        change: Tensor = self._known("project")(moved - original, self.epsilon)
        return (original + change).clamp(0, 1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The change of size 1 that rises most along a gradient [n, C, H, W]: its signs, or its direction.

        Raises:
            CamkitError: the norm has no such direction (``l0``, ``patch``).
        """
        found: Tensor = self._known("steepest")(gradient)
        return found

    def step_size(self, given: float | None, steps: int, *, reach: float = 1.0) -> float:
        """How far one of so many steps goes: as given, or `reach` times the budget divided among them."""
        return reach * self.epsilon / steps if given is None else given

    def random(self, generator: torch.Generator) -> Tensor:
        """Images drawn uniformly from the budget around the originals: one draw for all images of the batch."""
        change = torch.empty(self.original.shape[1:]).uniform_(-1, 1, generator=generator)
        if self.norm == "l2":
            direction = torch.randn(self.original.shape[1:], generator=generator)
            radius = torch.rand((), generator=generator) ** (1 / direction.numel())
            change = direction / direction.norm() * radius
        elif self.norm != "linf":
            raise CamkitError(f"There is no uniform draw from the threat model '{self.norm}'.")
        return (self.original + self.epsilon * change.to(self.original)).clamp(0, 1)

    def settle(self, moved: Tensor) -> Tensor:
        """Images [n * B, C, H, W] as they would be saved: in [0, 1], rounded to 8 bits if that is asked for.

        Where rounding to the nearest level would leave the budget, an image is rounded towards its original.
        """
        kept = moved.clamp(0, 1)
        if not self.eight_bit:
            return kept
        original, nearest = self._original(moved), _rounded(kept)
        change = (kept - original) * 255
        # half a thousandth of a level: what normalising and its inverse leave of a whole number
        towards = original + (change + 5e-4 * change.sign()).trunc() / 255
        return chosen(self.contains(nearest), nearest, _rounded(towards))

    def _original(self, moved: Tensor) -> Tensor:
        copies = len(moved) // len(self.original)
        return self.original if copies == 1 else self.original.repeat(copies, 1, 1, 1)

    def _known(self, what: str) -> Any:
        found = getattr(NORMS[self.norm], what)
        if found is None:
            raise CamkitError(f"The threat model '{self.norm}' has no '{what}', which the attack asks for.")
        return found


def chosen(images: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Of two batches [B, C, H, W] the first at `images`, bool [B], and the second elsewhere."""
    return torch.where(images[:, None, None, None], first, second)


def _rounded(pixels: Tensor) -> Tensor:
    return (pixels * 255).round() / 255


def _lengths(change: Tensor) -> Tensor:
    lengths: Tensor = change.flatten(1).norm(dim=1)
    return lengths


def _project_l2(change: Tensor, epsilon: float) -> Tensor:
    return change * (epsilon / _lengths(change).clamp(min=epsilon))[:, None, None, None]


def _direction(gradient: Tensor) -> Tensor:
    # scaled first: the square of a small gradient is zero in single precision
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    scaled = gradient / torch.where(largest > 0, largest, torch.ones_like(largest))
    length = _lengths(scaled)[:, None, None, None]
    return scaled / torch.where(length > 0, length, torch.ones_like(length))


def _positions(change: Tensor) -> Tensor:
    return (change != 0).any(dim=1)


def _keep_largest(change: Tensor, epsilon: float) -> Tensor:
    sizes = change.abs().amax(dim=1).flatten(1)
    kept = torch.zeros_like(sizes).scatter(1, sizes.topk(int(epsilon), dim=1).indices, 1)
    return change * kept.reshape(change.shape[0], 1, *change.shape[2:])


def _covered(change: Tensor) -> Tensor:
    """The share of each image that the smallest rectangle around its changed positions covers."""
    changed = _positions(change)
    sides = [_extent(changed.any(dim=dim)) for dim in (2, 1)]
    return sides[0] * sides[1] / (change.shape[2] * change.shape[3])


def _extent(changed: Tensor) -> Tensor:
    """From the first to the last True of each row of bool [n, length], [n]."""
    places = torch.arange(changed.shape[1], device=changed.device).expand_as(changed)
    last = places.masked_fill(~changed, -1).amax(dim=1)
    first = places.masked_fill(~changed, changed.shape[1]).amin(dim=1)
    return (last - first + 1).clamp(min=0).float()


NORMS: dict[str, Norm] = {
    "linf": Norm(
        lambda change: change.abs().flatten(1).amax(dim=1),
        8 / 255,
        lambda channels, height, width: 1,
        lambda change, epsilon: change.clamp(-epsilon, epsilon),
        torch.sign,
    ),
    "l2": Norm(_lengths, 1.0, lambda *sides: math.sqrt(math.prod(sides)), _project_l2, _direction),
    "l0": Norm(
        lambda change: _positions(change).flatten(1).sum(dim=1).float(),
        1,
        lambda channels, height, width: height * width,
        _keep_largest,
    ),
    "patch": Norm(_covered, 0.05, lambda channels, height, width: 1),
    "smallest": Norm(_lengths, math.inf, lambda *sides: math.inf, lambda change, epsilon: change, _direction),
}
_EXPECTED = {
    "linf": "a change of pixels in [0, 1] that is above 0 and at most {largest}, such as 8/255 = 0.031,",
    "l2": "the length of a change of pixels in [0, 1] that is above 0 and at most {largest}, such as 1.0,",
    "l0": "a whole number of positions, 1 to {largest},",
    "patch": "the share of the image that a patch may cover, above 0 and at most {largest}, such as 0.05,",
    "smallest": "nothing",
}
