"""What makes a segmentation model see a class where it does (Vinogradova et al., AAAI 2020, arXiv:2002.11434)."""

from torch import Tensor

from camkit import plugin
from camkit_targets.region import class_logits


@plugin.target("predicted-region", inputs=("class_index",))
def predicted_region(dense_logits: Tensor, class_index: Tensor) -> Tensor:
    """The sum of the class's logits over the pixels where it is the top class; 0 where it is nowhere.

    With a single class, which has nothing to be compared with, over the pixels whose logit is positive.
    """
    own, classes = class_logits(dense_logits, class_index), dense_logits.shape[1]
    top = dense_logits.detach().argmax(dim=1)
    predicted = own.detach() > 0 if classes == 1 else top == class_index[:, None, None]
    return (own * predicted).sum(dim=(1, 2))
