"""The score of one class."""

from torch import Tensor

from camkit import plugin


@plugin.target("class", inputs=("class_index",))
def class_score(logits: Tensor, class_index: Tensor) -> Tensor:
    """The logit of the class: what the CAM papers differentiate."""
    return logits.gather(1, class_index[:, None])[:, 0]
