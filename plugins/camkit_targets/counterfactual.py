"""What speaks against a class (Selvaraju et al., section 'counterfactual explanations')."""

from torch import Tensor

from camkit import plugin


@plugin.target("counterfactual", inputs=("class_index",))
def counterfactual(logits: Tensor, class_index: Tensor) -> Tensor:
    """The negative logit of the class: its map shows what lowers the class's score."""
    return -logits.gather(1, class_index[:, None])[:, 0]
