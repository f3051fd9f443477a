"""What the model says of changed images, as a metric asks for it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from camkit.chunks import in_chunks
from camkit.contracts import Make
from camkit.explain import Explainer
from camkit.loss import to_model
from camkit.metrics import Available, Score, Space
from camkit.precision import single
from camkit.targets import probabilities


class ModelAnswers:
    """The `camkit.metrics.Answers` about one batch and the class that one method explained.

    Args:
        explainer: the model, with its preprocessing.
        given: the images [B, C, H, W] by their space, ``images`` and ``pixels``.
        logits: the model's output for them, [B, classes].
        class_index: the class that is asked about, [B].
        company: the answers about the other methods' explanations of the batch. What is asked of one is asked of all,
            so their heatmaps go through the model together.
    """

    def __init__(
        self,
        explainer: Explainer,
        given: Available,
        logits: Tensor,
        class_index: Tensor,
        company: "Callable[[], Sequence[ModelAnswers]] | None" = None,
    ) -> None:
        self.explainer, self.given, self.class_index, self.logits = explainer, given, class_index, single(logits)
        self._company = company or (lambda: [self])
        self._masked: dict[Space, tuple[Tensor, Tensor]] = {}

    def before(self, score: Score = "probability") -> Tensor:
        """See `camkit.metrics.Answers`."""
        return self._read(self.logits, score)

    def masked(self, masks: Tensor, *, score: Score = "probability", space: Space = "images") -> Tensor:
        """See `camkit.metrics.Answers`."""
        known = self._asked(masks, space)
        if known is None:
            of_all = masks is self.given["heatmaps"]
            asked = [(one, one.given["heatmaps"]) for one in self._company()] if of_all else [(self, masks)]
            images = self.given[space]
            found = in_chunks(
                lambda number: images * asked[number][1].unsqueeze(1),
                len(asked),
                lambda some: self._logits(some, space),
                memory=self.explainer.memory,
                description="Asking the model",
            )
            for (one, own), logits in zip(asked, found.unbind(1), strict=True):
                one._masked[space] = (own, logits)
            known = self._masked[space][1]
        return self._read(known, score)

    def _asked(self, masks: Tensor, space: Space) -> Tensor | None:
        """The logits [B, classes] for these masks, where they were asked for last."""
        known, logits = self._masked.get(space, (None, None))
        return logits if known is masks else None

    def map(self, make: Make, n: int, *, score: Score = "probability", space: Space = "images") -> Tensor:
        """See `camkit.metrics.Answers`."""

        def evaluate(images: Tensor) -> Tensor:
            return self._read(self._logits(images, space), score)

        memory = self.explainer.memory
        return in_chunks(make, n, evaluate, memory=memory, description="Asking the model")

    def _logits(self, given: Tensor, space: Space) -> Tensor:
        images = to_model(self.explainer, given) if space == "pixels" else given
        with torch.inference_mode(False), torch.no_grad():
            return single(self.explainer.logits(images.to(self.explainer.dtype)))

    def _read(self, logits: Tensor, score: Score) -> Tensor:
        """The answers [n * B] in logits [n * B, classes] of n copies of the batch."""
        index = self.class_index.repeat(len(logits) // len(self.class_index))
        own = logits.gather(1, index[:, None])[:, 0]
        kind = self.explainer.probability if score in ("probability", "correct") else score
        if score == "logit":
            return own
        if score == "correct":
            sigmoid = kind == "sigmoid" or logits.shape[1] == 1
            return ((own > 0) if sigmoid else (logits.argmax(dim=1) == index)).to(logits.dtype)
        return probabilities(logits, kind).gather(1, index[:, None])[:, 0]
