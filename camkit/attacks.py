"""Attacks: images changed as little as a threat model allows, so that the prediction is wrong.

An attack works on pixels in [0, 1]; how the model wants its images normalised is the engine's business, and so are the
bounds: whatever the function returns is brought back into the ball of radius epsilon and into [0, 1].
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from camkit import plugin
from camkit.cut import frozen, lock
from camkit.errors import CamkitError
from camkit.explain import Explainer
from camkit.injection import Signature, in_words, parse_signature
from camkit.registry import registry
from camkit.targets import Target, parse_targets

if TYPE_CHECKING:
    from camkit.registry import Registry


class Loss:
    """What an attack increases: the model's loss on the labels, for images in pixels [0, 1].

    Called with pixels [B, C, H, W] it gives one value [B] per image: cross-entropy, or for sigmoid models the binary
    cross-entropy of the label.
    """

    def __init__(self, explainer: Explainer, labels: Tensor) -> None:
        self.explainer, self.labels = explainer, labels

    def __call__(self, pixels: Tensor) -> Tensor:
        """The loss of each image, [B]."""
        logits = self.explainer.logits(to_model(self.explainer, pixels))
        if self.explainer.probability == "sigmoid":
            label = logits.gather(1, self.labels[:, None])[:, 0]
            return F.binary_cross_entropy_with_logits(label, torch.ones_like(label), reduction="none")
        return F.cross_entropy(logits, self.labels, reduction="none")

    def gradient(self, pixels: Tensor) -> Tensor:
        """The gradient of each image's loss with respect to its pixels, [B, C, H, W]."""
        module = self.explainer.module
        with ExitStack() as stack:
            for context in (lock(module), torch.inference_mode(False), frozen(module), torch.enable_grad()):
                stack.enter_context(context)
            leaf = pixels.detach().clone().requires_grad_()
            return torch.autograd.grad(self(leaf).sum(), leaf)[0]


KNOWN: dict[str, object] = {"pixels": Tensor, "loss": Loss, "labels": Tensor, "epsilon": float}


@dataclass(frozen=True)
class Attack:
    """A registered attack."""

    name: str
    function: Callable[..., Tensor]
    signature: Signature
    norm: plugin.Norm
    paper: str

    @classmethod
    def parse(cls, function: Callable[..., Tensor], mark: plugin.Mark, registry: "Registry") -> "Attack":
        """Reads a marked function; it can ask for `pixels`, `loss`, `labels` and `epsilon`."""
        signature = parse_signature(function, f"the attack '{mark.name}'", KNOWN)
        if mark.facts["norm"] not in _PROJECTIONS:
            raise CamkitError(
                f"The threat model '{mark.facts['norm']}' is not known; choose {' or '.join(_PROJECTIONS)}."
            )
        return cls(mark.name, function, signature, mark.facts["norm"], mark.facts["paper"])


@dataclass(frozen=True)
class AttackResult:
    """What an attack did.

    Attributes:
        images: the attacked images [B, C, H, W] as the model takes them.
        pixels: the same in [0, 1].
        labels: the class that was attacked, [B].
        logits_before, logits_after: [B, classes].
        success: whether the label is no longer predicted, bool [B].
        distance: how far each image was moved, in the attack's norm, [B].
    """

    images: Tensor
    pixels: Tensor
    labels: Tensor
    logits_before: Tensor
    logits_after: Tensor
    success: Tensor
    distance: Tensor


@torch.inference_mode(False)
def attack(
    explainer: Explainer,
    images: Tensor,
    name: str = "fgsm",
    *,
    epsilon: float = 8 / 255,
    target: int | str | Tensor | Target = "top",
    options: Mapping[str, Any] | None = None,
) -> AttackResult:
    """Attacks a batch of images [B, C, H, W], given as the model takes them.

    Args:
        explainer: the model, with its preprocessing; a model without one takes pixels in [0, 1].
        images: preprocessed images.
        name: name of the attack.
        epsilon: radius of the ball, in pixels of [0, 1].
        target: the label whose prediction is to fail, as for an Explainer.
        options: the attack's options.

    Raises:
        CamkitError: something is not known, epsilon is not positive, or images that come without a preprocessing are
            outside [0, 1].
    """
    found: Attack = registry().get("attack", name)
    if epsilon <= 0:
        raise CamkitError(
            f"Epsilon was {epsilon}; a positive number of pixel units is expected, such as 8/255 = 0.031."
        )
    chosen = found.signature.options(options)
    targets, several = parse_targets(target, explainer.class_names, registry().names("target", qualified=True))
    if several:
        raise CamkitError("An attack is made against one label per image; give one target.")
    with torch.no_grad():
        before = explainer.logits(images)
    labels = targets[0].resolve(before)
    pixels = to_pixels(explainer, images)
    available = {"pixels": pixels, "loss": Loss(explainer, labels), "labels": labels, "epsilon": float(epsilon)}
    moved = found.function(*(available[ask] for ask in found.signature.asks), **chosen)
    if not isinstance(moved, Tensor) or moved.shape != pixels.shape:
        raise CamkitError(
            f"The attack '{name}' returned {in_words(moved)}; images of shape {list(pixels.shape)} are expected."
        )
    bounded = _PROJECTIONS[found.norm](moved.detach() - pixels, epsilon).add(pixels).clamp(0, 1)
    attacked = to_model(explainer, bounded)
    with torch.no_grad():
        after = explainer.logits(attacked)
    label = after.gather(1, labels[:, None])[:, 0]
    success = label < 0 if explainer.probability == "sigmoid" else after.argmax(dim=1) != labels
    distance = _NORMS[found.norm]((bounded - pixels).flatten(1))
    return AttackResult(attacked, bounded, labels, before, after, success, distance)


def to_pixels(explainer: Explainer, images: Tensor) -> Tensor:
    """Images as the model takes them, brought to [0, 1]."""
    if explainer.preprocessing is not None:
        return explainer.preprocessing.pixels(images)
    if float(images.min()) < 0 or float(images.max()) > 1:
        raise CamkitError(
            f"The images lie in [{float(images.min()):.2f}, {float(images.max()):.2f}] and the Explainer does not know "
            f"how they were normalised; give it preprocessing=... or images in [0, 1]."
        )
    return images


def to_model(explainer: Explainer, pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as the model takes them."""
    return explainer.preprocessing.normalise(pixels) if explainer.preprocessing is not None else pixels


def _project_linf(change: Tensor, epsilon: float) -> Tensor:
    return change.clamp(-epsilon, epsilon)


def _project_l2(change: Tensor, epsilon: float) -> Tensor:
    length: Tensor = change.flatten(1).norm(dim=1)
    return change * (epsilon / length.clamp(min=epsilon))[:, None, None, None]


_PROJECTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {"linf": _project_linf, "l2": _project_l2}
_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "linf": lambda flat: flat.abs().amax(dim=1),
    "l2": lambda flat: flat.norm(dim=1),
}
