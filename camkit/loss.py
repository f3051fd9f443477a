"""What an attack learns of the model: it asks about images, and camkit keeps those that fool the model.

An attack works on the whole batch as if nothing were found yet. The model sees only the images that still stand, so
that each image stops by itself and no attack needs to know.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from camkit import progress
from camkit.cut import lock, require_gradients
from camkit.errors import CamkitError
from camkit.explain import Explainer
from camkit.goals import Goal
from camkit.precision import single
from camkit.threats import Threat

Objective = Callable[[Goal, Tensor], Tensor]
Transform = Callable[[Tensor], Tensor]

# The largest number of images in one pass that needs no gradient.
_CHUNK = 128
# Relative to the largest logit: how far an image must be over the border to leave the batch, so that it is over it in a
# batch of another size, too.
_CLEAR = 1e-5


@dataclass(frozen=True)
class Answer:
    """What the model said about images [n * B, C, H, W].

    Attributes:
        values: the objective, [n * B] or [n * B, k]; minus infinity for images that have left the batch.
        gradient: its gradient with respect to the pixels, of the images' shape or [n * B, k, C, H, W]; zero for images
            that have left, and None where none was asked for.
        fooled: whether the goal is reached, bool [n * B]; True for images that have left.
    """

    values: Tensor
    gradient: Tensor | None
    fooled: Tensor

    @property
    def slope(self) -> Tensor:
        """The gradient, which was asked for."""
        if self.gradient is None:
            raise CamkitError("The gradient was not asked for: ask with gradient=True.")
        return self.gradient


class Loss:
    """The model as an attack meets it: asked about images in pixels [0, 1], it answers with a loss to increase.

    Images come as n copies of the batch one after the other, [n * B, C, H, W], mostly with n = 1. Each is clipped to
    [0, 1], and rounded if only 8-bit pictures count, before the model sees it.

    Args:
        explainer: the model, with its preprocessing.
        goal: what the attack is after.
        threat: how far it may go. Of images that fool the model within it, the first is kept and the image leaves the
            batch; where the smallest change is looked for, the nearest is kept and the image stays.
        early_stop: whether images leave the batch and are kept at all, where there is a budget.
        black_box: whether gradients are refused.
        name: whose progress is shown.
    """

    def __init__(
        self,
        explainer: Explainer,
        goal: Goal,
        threat: Threat,
        *,
        early_stop: bool = True,
        black_box: bool = False,
        name: str = "attack",
    ) -> None:
        self.explainer, self.goal, self.threat, self.name = explainer, goal, threat, name
        self._keeps = early_stop or threat.norm == "smallest"
        self._black_box = black_box
        self._differentiable = False
        count, device = len(threat.original), threat.original.device
        # which images stand is known without asking the device, which would have to finish its work first
        self._standing = torch.arange(count, device=device)
        self.left = torch.zeros(count, dtype=torch.bool, device=device)
        self.found = threat.original.clone()
        self.nearest = torch.full((count,), torch.inf, device=device)
        self.queries = torch.zeros(count, dtype=torch.int64, device=device)
        self.flat = torch.zeros(count, dtype=torch.bool, device=device)

    def __call__(self, pixels: Tensor, of: Objective = Goal.loss) -> Tensor:
        """The loss, or another objective, of each image, [n * B]; without a gradient."""
        return self.ask(pixels, of, gradient=False).values

    def gradient(self, pixels: Tensor, of: Objective = Goal.loss, *, through: Transform | None = None) -> Tensor:
        """The gradient of each image's loss, or of another objective, with respect to its pixels."""
        return self.ask(pixels, of, through=through).slope

    def ask(
        self,
        pixels: Tensor,
        of: Objective = Goal.loss,
        *,
        gradient: bool = True,
        through: Transform | None = None,
    ) -> Answer:
        """Shows images to the model.

        Args:
            pixels: [n * B, C, H, W].
            of: what is asked, a function of the goal and the logits [n, classes] of some of the images: ``Goal.loss``,
                ``Goal.margin``, or the attack's own; values [n], or [n, k] for k objectives at once.
            gradient: whether the objective is differentiated.
            through: what the model sees in place of the images, image by image and differentiable. Such images are
                not judged: what would be shown is not what would be saved.

        Raises:
            CamkitError: the model is not differentiable, or the attack said that it needs no gradients.
        """
        if gradient and self._black_box:
            raise CamkitError(f"The attack '{self.name}' is marked with black_box=True but asks for gradients.")
        settled = self.threat.settle(pixels.detach())
        count = len(self.left)
        copies = len(settled) // count
        everyone = len(self._standing) == count
        fooled = self.left.repeat(copies)
        if len(self._standing) == 0:
            return Answer(torch.full_like(fooled, -torch.inf, dtype=settled.dtype), torch.zeros_like(settled), fooled)
        images = self._standing.repeat(copies)
        rows = images + count * torch.arange(copies, device=images.device).repeat_interleave(len(self._standing))
        logits, values, slope = self._run(
            settled if everyone else settled[rows], self.goal.rows(images), of, gradient, through
        )
        self.queries.index_add_(0, images, torch.ones_like(images))
        if through is None:
            fooled[rows] = self._judge(settled, rows, logits)
        if slope is not None:
            self.flat[images] = (slope == 0).flatten(1).all(dim=1)
        if everyone:
            return Answer(values, slope, fooled)
        full = torch.full((len(settled), *values.shape[1:]), -torch.inf, dtype=values.dtype, device=values.device)
        full[rows] = values
        gradients = None
        if slope is not None:
            gradients = slope.new_zeros((len(settled), *slope.shape[1:]))
            gradients[rows] = slope
        return Answer(full, gradients, fooled)

    def steps(self, count: int) -> Iterator[int]:
        """0, 1, … below `count`, as long as any image is left; shown as a bar where somebody watches."""
        with progress.task(self.name, count) as advance:
            for step in range(count):
                if len(self._standing) == 0:
                    return
                yield step
                advance(1)

    def finish(self, images: Tensor) -> None:
        """Takes images, bool [B], out of the batch: the attack will find nothing better for them."""
        self.left = self.left | images
        self._standing = (~self.left).nonzero()[:, 0]

    @property
    def kept(self) -> Tensor:
        """For which images one was found and kept, bool [B]; the images are `found`."""
        return self.nearest.isfinite()

    def _run(
        self, shown: Tensor, goal: Goal, of: Objective, gradient: bool, through: Transform | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if gradient and not self._differentiable:
            require_gradients(self.explainer.module)
            self._differentiable = True
        with lock(self.explainer.module), torch.inference_mode(False), torch.set_grad_enabled(gradient):
            if not gradient:
                see = through or (lambda pixels: pixels)
                chunks = shown.split(_CHUNK)
                logits = torch.cat([logits_of(self.explainer, see(chunk)) for chunk in chunks])
                return logits, of(goal, logits), None
            leaf = shown.detach().clone().requires_grad_()
            logits = logits_of(self.explainer, through(leaf) if through else leaf)
            values = of(goal, logits)
            slope = _gradients(values, leaf)
        return logits.detach(), values.detach(), slope

    def _judge(self, settled: Tensor, rows: Tensor, logits: Tensor) -> Tensor:
        """Which of the images at `rows` reach the goal, bool; those that are worth it are kept."""
        count = len(self.left)
        margins = self.goal.rows(rows % count).margin(logits)
        clear = margins > _CLEAR * logits.abs().amax(dim=1)
        if self._keeps and bool(clear.any()):
            good = torch.zeros(len(settled), dtype=torch.bool, device=settled.device)
            good[rows] = clear
            good &= self.threat.contains(settled)
            distances = self.threat.distance(settled)
            for copy, reached, distance in zip(
                settled.split(count), good.split(count), distances.split(count), strict=True
            ):
                better = reached & (distance < self.nearest)
                self.found[better] = copy[better]
                self.nearest[better] = distance[better].to(self.nearest.dtype)
            if self.threat.norm != "smallest":
                self.finish(self.kept)
        return margins > 0


def ascend(
    loss: Loss,
    start: Tensor,
    *,
    steps: int,
    step_size: float,
    direction: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Steps up the loss, each followed by a projection into the threat model; the last images.

    Args:
        loss: what is climbed.
        start: where, [B, C, H, W].
        steps: how often at most; images that fool the model on the way stop there.
        step_size: how far one step goes, in the unit of the threat model's norm.
        direction: what stands in place of the loss's gradient at the given images.
    """
    moved, threat = start, loss.threat
    for _ in loss.steps(steps):
        gradient = loss.gradient(moved) if direction is None else direction(moved)
        moved = threat.project(moved + step_size * threat.steepest(gradient))
    return moved


def logits_of(explainer: Explainer, pixels: Tensor) -> Tensor:
    """The model's logits [n, classes] for pixels in [0, 1], in float32 at least."""
    with lock(explainer.module):
        return single(explainer._logits(to_model(explainer, pixels).to(explainer.dtype)))


def to_model(explainer: Explainer, pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as the model takes them."""
    return explainer.preprocessing.normalise(pixels) if explainer.preprocessing is not None else pixels


def _gradients(values: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of values [n] or [n, k] at the leaf [n, C, H, W]; [n, k, C, H, W] of several."""
    columns = values.unsqueeze(1) if values.ndim == 1 else values
    slopes = []
    for place, column in enumerate(columns.unbind(dim=1)):
        more = place + 1 < columns.shape[1]
        slope = (
            torch.autograd.grad(column.sum(), leaf, retain_graph=more, allow_unused=True)[0]
            if column.requires_grad
            else None
        )
        if slope is None:
            raise CamkitError(
                "The model passes no gradient from its logits to the image, so an attack by gradients cannot work; "
                "choose one that needs none (camkit plugins NAME says: black box)."
            )
        slopes.append(slope)
    return slopes[0] if values.ndim == 1 else torch.stack(slopes, dim=1)
