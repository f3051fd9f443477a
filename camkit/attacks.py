"""Attacks: images changed as little as a threat model allows, so that the prediction or the explanation is another.

An attack works on pixels in [0, 1]; how the model wants its images normalised is camkit's business. So is the
judgement: camkit shows the images to the model, keeps those that fool it, measures how far they were moved, and refuses
an attack that went further than it was allowed to.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camkit import plugin
from camkit.cut import frozen, lock
from camkit.errors import CamkitError, CamkitWarning, unknown
from camkit.explain import AnyMethod, Explainer, require_evaluation_mode
from camkit.goals import Goal as Goal
from camkit.injection import Signature, blaming, in_words, parse_signature
from camkit.loss import Answer as Answer
from camkit.loss import Loss as Loss
from camkit.loss import ascend as ascend
from camkit.loss import logits_of, to_model
from camkit.precision import single
from camkit.registry import item, registry
from camkit.steerable import Explain as Explain
from camkit.steerable import overlap
from camkit.steerable import steer as steer
from camkit.targets import Target, parse_targets, probabilities
from camkit.threats import NORMS
from camkit.threats import Threat as Threat
from camkit.threats import chosen as chosen

if TYPE_CHECKING:
    from camkit.registry import Registry

KNOWN: dict[str, object] = {
    "pixels": Tensor,
    "loss": Loss,
    "labels": Tensor,
    "epsilon": float,
    "threat": Threat,
    "goal": Goal,
    "explain": Explain,
}
AnyAttack = str | Callable[..., Tensor]

# An explanation counts as moved when less than half of its strongest positions are still among the strongest.
MOVED = 0.5


@dataclass(frozen=True)
class Attack:
    """A registered attack; see `plugin.attack` for what it says of itself."""

    name: str
    function: Callable[..., Tensor]
    signature: Signature
    norms: tuple[plugin.Norm, ...]
    paper: str
    goals: tuple[str, ...]
    moves: str
    black_box: bool

    @classmethod
    def parse(cls, function: Callable[..., Tensor], mark: plugin.Mark, registry: "Registry") -> "Attack":
        """Reads a marked function; what it can ask for is listed in `KNOWN`."""
        signature = parse_signature(function, f"the attack '{mark.name}'", KNOWN)
        for norm in mark.facts["norms"]:
            if norm not in NORMS:
                raise unknown("threat model", norm, NORMS)
        return cls(mark.name, function, signature, **mark.facts)

    @property
    def facts(self) -> dict[str, str]:
        """What a user should know before choosing it."""
        sees = "answers only (black box)" if self.black_box else "gradients"
        return {
            "threat models": ", ".join(self.norms),
            "goals": ", ".join(self.goals),
            "moves": self.moves,
            "sees": sees,
        }


@dataclass(frozen=True)
class AttackResult:
    """What an attack did.

    Attributes:
        images: the attacked images [B, C, H, W] as the model takes them.
        pixels: the same in [0, 1]; `original` are the images before.
        original: see pixels.
        labels: the class that was attacked, int64 [B].
        target: the class that was wanted instead, int64 [B]; None where any other would do.
        logits_before, logits_after: [B, classes].
        already_wrong: images that the model got wrong before anything was changed, bool [B]: another class than the
            label was predicted, or the target was. They are left as they were, and count neither as success nor as
            failure.
        success: whether the attack did it, bool [B]. Of an attack on the explanation: the label is still predicted,
            and less than half of the map's strongest fifth is still among the strongest.
        distance: how far each image was moved, in the unit of `norm`, [B].
        queries: how often the model saw each image or a change of it, with or without a gradient, int64 [B]; the maps
            that an attack on the explanation asks for are not counted.
        norm, epsilon: the threat model; epsilon is infinite where the smallest change was looked for.
        attack, options: the attack's name and all of its options.
        probability: ``softmax`` or ``sigmoid``.
        overlap: of an attack on the explanation, the share of the map's strongest fifth that is still among the
            strongest, [B]; else None.
    """

    images: Tensor = field(repr=False)
    pixels: Tensor = field(repr=False)
    original: Tensor = field(repr=False)
    labels: Tensor
    target: Tensor | None
    logits_before: Tensor = field(repr=False)
    logits_after: Tensor = field(repr=False)
    already_wrong: Tensor
    success: Tensor
    distance: Tensor
    queries: Tensor
    norm: str
    epsilon: float
    attack: str
    options: Mapping[str, Any]
    probability: str = "softmax"
    overlap: Tensor | None = None

    @property
    def success_rate(self) -> float:
        """The share of successes among the images that the model got right before; NaN where there are none."""
        right = ~self.already_wrong
        return float(self.success[right].float().mean())

    @property
    def robust_accuracy(self) -> float:
        """The share of all images that the model got right before, and that were attacked in vain."""
        return float((~self.already_wrong & ~self.success).float().mean())

    @property
    def confidence_before(self) -> Tensor:
        """The probabilities [B, classes] of the original images."""
        return probabilities(self.logits_before, self.probability)

    @property
    def confidence_after(self) -> Tensor:
        """The probabilities [B, classes] of the attacked images."""
        return probabilities(self.logits_after, self.probability)


@torch.inference_mode(False)
def attack(
    explainer: Explainer,
    images: Tensor,
    name: AnyAttack = "fgsm",
    *,
    epsilon: float | None = None,
    norm: str | None = None,
    target: int | str | Tensor | Target | None = None,
    labels: int | str | Tensor | Target | None = None,
    options: Mapping[str, Any] | None = None,
    method: AnyMethod = "gradcam",
    layer: str | None = None,
    eight_bit: bool = False,
    early_stop: bool = True,
) -> AttackResult:
    """Attacks a batch of images [B, C, H, W], given as the model takes them.

    Args:
        explainer: the model, with its preprocessing; a model without one takes pixels in [0, 1].
        images: preprocessed images.
        name: name of the attack, or a function marked as one.
        epsilon: how much may be changed, in the unit of the threat model: the largest change of a pixel value in [0, 1]
            (``linf``, 8/255 if not given), the length of the change (``l2``, 1), the number of positions (``l0``, 1),
            the share of the image (``patch``, 0.05); none for ``smallest``.
        norm: the threat model, where the attack works in several; by default its first.
        target: the class that is wanted instead; left out, any other will do.
        labels: the right class of each image; left out, the one that the model predicts.
        options: the attack's options.
        method: whose map an attack on the explanation moves.
        layer: the target layer of that map.
        eight_bit: whether only pictures count that 8 bits per channel can hold; the original is rounded, too.
        early_stop: whether images that are fooled leave the batch. Otherwise what the attack returns in the end counts.

    Raises:
        CamkitError: something is not known, out of its range or does not fit the attack; the model passes no
            gradients; images that come without a preprocessing are outside [0, 1]; or the attack returned images that
            are not finite or further away than it was allowed to go.
    """
    found = as_attack(name)
    require_evaluation_mode(explainer.module)
    images = explainer._checked(images)
    chosen = found.signature.options(options)
    threat = Threat.checked(norm_of(found, norm), epsilon, single(to_pixels(explainer, images)), eight_bit=eight_bit)
    with torch.no_grad():
        before = logits_of(explainer, threat.original)
    goal = _goal(found, explainer, before, target, labels)
    already_wrong = _already_wrong(goal, before, labels_given=labels is not None)
    # an image whose prediction changed is no success of an attack on the explanation, and nothing to be kept
    keeps = early_stop and found.moves == "prediction"
    loss = Loss(explainer, goal, threat, early_stop=keeps, black_box=found.black_box, name=found.name)
    loss.finish(already_wrong)
    explain = Explain(explainer, goal.labels, method, layer) if _explains(found) else None
    available: dict[str, Any] = {
        "pixels": threat.original.clone(),
        "loss": loss,
        "labels": goal.labels,
        "epsilon": threat.epsilon,
        "threat": threat,
        "goal": goal,
        "explain": explain,
    }
    moved = threat.original
    if not bool(already_wrong.all()):
        # held throughout: the model is asked again and again, and has many parameters to freeze
        with lock(explainer.module), frozen(explainer.module), blaming(f"the attack '{found.name}'"):
            moved = found.function(*(available[ask] for ask in found.signature.asks), **chosen)
    pixels = _accepted(found, moved, loss, already_wrong)
    attacked = to_model(explainer, pixels).to(images.dtype)
    with torch.no_grad():
        after = logits_of(explainer, pixels)
    fooled = goal.margin(after) > 0
    shared = overlap(explain(threat.original), explain(pixels)) if explain else None
    moves_map = shared is not None and found.moves == "explanation"
    success = goal.kept(after) & (shared < MOVED) if moves_map else fooled  # type: ignore[operator]
    _warn_of_flat_loss(found, loss.flat & ~fooled & ~already_wrong)
    return AttackResult(
        images=attacked,
        pixels=pixels,
        original=threat.original,
        labels=goal.labels,
        target=goal.target,
        logits_before=before,
        logits_after=after,
        already_wrong=already_wrong,
        success=success & ~already_wrong,
        distance=threat.distance(pixels),
        queries=loss.queries,
        norm=threat.norm,
        epsilon=threat.epsilon,
        attack=found.name,
        options=chosen,
        probability=goal.probability,
        overlap=shared,
    )


def as_attack(given: AnyAttack) -> Attack:
    """An attack by its name, or of a function marked with `plugin.attack` that no plugin has registered.

    Raises:
        CamkitError: the name is not known, or the function is not marked as one attack.
    """
    found: Attack = item("attack", given, "NAME, norm=..., ...")
    return found


def norm_of(attack: Attack, given: str | None) -> str:
    """The threat model that an attack works in: the one given, or else its first.

    Raises:
        CamkitError: it does not work in the one given.
    """
    if given is None:
        return attack.norms[0]
    if given not in attack.norms:
        raise CamkitError(
            f"The attack '{attack.name}' does not work in the threat model '{given}'; choose "
            f"{' or '.join(attack.norms)}."
        )
    return given


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


def _explains(attack: Attack) -> bool:
    return attack.moves == "explanation" or "explain" in attack.signature.asks


def _goal(attack: Attack, explainer: Explainer, before: Tensor, target: Any, labels: Any) -> Goal:
    if target is None and "untargeted" not in attack.goals:
        raise CamkitError(f"The attack '{attack.name}' works towards a class; say which with target=... (--to CLASS).")
    if target is not None and "targeted" not in attack.goals:
        raise CamkitError(f"The attack '{attack.name}' has no target class; leave the target out.")
    wanted = None if target is None else _classes(explainer, before, target, "target")
    attacked = _classes(explainer, before, "top" if labels is None else labels, "label")
    probability = "sigmoid" if before.shape[1] == 1 else explainer.probability
    return Goal(attacked, wanted, probability)


def _classes(explainer: Explainer, logits: Tensor, given: Any, what: str) -> Tensor:
    targets, several = parse_targets(given, explainer.class_names, registry().names("target", qualified=True))
    if several or targets[0].function != "class":
        raise CamkitError(f"An attack has one {what} for each image, which is a class; '{given}' is not.")
    return targets[0].resolve(logits)


def _already_wrong(goal: Goal, before: Tensor, *, labels_given: bool) -> Tensor:
    """Which images need no attack: the goal is reached as they are, or the model does not even see the given label."""
    reached = goal.margin(before) > 0
    return reached | ~goal.kept(before) if labels_given else reached


def _accepted(attack: Attack, moved: Any, loss: Loss, already_wrong: Tensor) -> Tensor:
    """What was kept on the way and, where nothing was, what the attack returned; the original of images left alone.

    Raises:
        CamkitError: the attack returned something else than images, or images that it was not allowed to.
    """
    threat = loss.threat
    if not isinstance(moved, Tensor) or moved.shape != threat.original.shape:
        raise CamkitError(
            f"The attack '{attack.name}' returned {in_words(moved)}; images of shape {list(threat.original.shape)} are "
            f"expected."
        )
    moved = moved.detach().to(threat.original)
    if not bool(moved.isfinite().all()):
        raise CamkitError(f"The attack '{attack.name}' returned images that are not finite; it is not to be used.")
    settled = threat.settle(moved)
    if not bool(threat.contains(settled).all()):
        raise CamkitError(
            f"The attack '{attack.name}' moved an image by {float(threat.distance(settled).max()):.4g} "
            f"({threat.norm}), but {threat.epsilon:.4g} is allowed; it is not to be used."
        )
    return chosen(already_wrong, threat.original, chosen(loss.kept, loss.found, settled))


def _warn_of_flat_loss(attack: Attack, images: Tensor) -> None:
    if not bool(images.any()):
        return
    which = ", ".join(str(index) for index in images.nonzero()[:, 0].tolist())
    warnings.warn(
        f"The attack '{attack.name}' found a gradient of zero at image {which}: the loss is flat there, or the model "
        f"rounds on its way; an attack that needs no gradient may do better.",
        CamkitWarning,
        stacklevel=3,
    )
