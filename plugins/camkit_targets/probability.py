"""The probability of one class."""

from torch import Tensor

from camkit import plugin


@plugin.target("probability", inputs=("class_index",))
def probability(probabilities: Tensor, class_index: Tensor) -> Tensor:
    """The class's softmax or sigmoid, as the model has it: other classes that lose count as well as this one that wins.

    Its gradient vanishes where the model is certain, which the logit's does not.
    """
    return probabilities.gather(1, class_index[:, None])[:, 0]
