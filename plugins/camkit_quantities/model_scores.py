"""The scores of other images."""

from torch import Tensor

from camkit import plugin
from camkit.chunks import in_chunks
from camkit.contracts import Make, ModelScores
from camkit.precision import single
from camkit.quantities import Pass


class _ModelScores:
    def __init__(self, this: Pass) -> None:
        self.this = this

    def map(self, make: Make, n: int) -> Tensor:
        dtype = self.this.scored.forward.images.dtype

        def evaluate(images: Tensor) -> Tensor:
            return single(self.this.again(images.to(dtype)).scored.scores)

        return in_chunks(make, n, evaluate, memory=self.this.memory, description="Running the model")


@plugin.quantity("model_scores", traceable=False, layer=False, reruns=True)
def model_scores(this: Pass) -> ModelScores:
    """The target's scores of perturbed images: ``model_scores.map(make, n)`` is [B, n]."""
    return _ModelScores(this)
