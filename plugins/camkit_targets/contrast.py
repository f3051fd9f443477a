"""What tells one class from another that is named for each image (Prabhushankar et al., 2020, arXiv:2008.00178)."""

from torch import Tensor

from camkit import plugin


@plugin.target("contrast", inputs=("class_index", "other_class"))
def contrast(logits: Tensor, class_index: Tensor, other_class: Tensor) -> Tensor:
    """The logit of the class minus that of another, int64 [B]: why the one rather than the other.

    The paper differentiates a loss between the two; the difference has the same answer without the loss's own slope.
    """
    own, other = (logits.gather(1, index[:, None])[:, 0] for index in (class_index, other_class))
    return own - other
