"""What an attack is after, as functions of the model's logits, for softmax, sigmoid and single-logit models alike."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Goal:
    """That a class is no longer predicted or, with a target, that the target is.

    A softmax model predicts its top class; a sigmoid model each class whose logit is positive, which leaves the other
    classes out of the question. A model with a single logit is a sigmoid model.

    Attributes:
        labels: the class that is attacked, [B].
        target: the class that is wanted instead, [B]; None where any other class will do.
        probability: ``softmax`` or ``sigmoid``.
    """

    labels: Tensor
    target: Tensor | None = None
    probability: str = "softmax"

    def rows(self, index: Tensor) -> "Goal":
        """The goal of the images at `index`."""
        target = None if self.target is None else self.target[index]
        return Goal(self.labels[index], target, self.probability)

    def loss(self, logits: Tensor) -> Tensor:
        """The loss [B] that an attack increases: minus the label's log-probability, or the target's log-probability.

        This is the cross-entropy, of a sigmoid model the binary cross-entropy of that class.
        """
        chosen, sign = (self.labels, -1) if self.target is None else (self.target, 1)
        logarithms = F.logsigmoid(logits) if self._single(logits) else logits.log_softmax(dim=1)
        return sign * _at(logarithms, chosen)

    def margins(self, logits: Tensor) -> Tensor:
        """By how much each way to the goal is open, [B, k]: one that is positive fools the model.

        Untargeted, there is one for each class: by how much its logit is above the label's (the label's own is minus
        infinity). With a target there is one: by how much its logit is above all others. In a sigmoid model it is the
        logit itself, negative for a label.
        """
        if self._single(logits):
            chosen, sign = (self.labels, -1) if self.target is None else (self.target, 1)
            return sign * _at(logits, chosen)[:, None]
        chosen = self.labels if self.target is None else self.target
        others = logits.scatter(1, chosen[:, None], -torch.inf)
        own = _at(logits, chosen)[:, None]
        return others - own if self.target is None else own - others.amax(dim=1, keepdim=True)

    def margin(self, logits: Tensor) -> Tensor:
        """The largest of the `margins`, [B]: the goal is reached where it is positive."""
        return self.margins(logits).amax(dim=1)

    def kept(self, logits: Tensor) -> Tensor:
        """Whether the label is predicted, bool [B]."""
        return Goal(self.labels, None, self.probability).margin(logits) <= 0

    def _single(self, logits: Tensor) -> bool:
        return self.probability == "sigmoid" or logits.shape[1] == 1


def _at(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[:, None])[:, 0]
