"""Choosing a target layer for a model that no adapter describes: one walk, and the last layer that can carry a map."""

from torch import Tensor, nn

from camkit.adapter import Adapter, Position, Resolved
from camkit.errors import CamkitError
from camkit.walk import LayerRecord, walk


def probe(module: nn.Module, images: Tensor) -> Resolved:
    """An adapter made for this model: it cuts at the last layer with positions whose gradients are not zero.

    Raises:
        CamkitError: no layer qualifies; the sentence says which adapter facts to state.
    """
    seen = walk(module, images, gradients=True)
    fit = [record for record in seen.layers if _can_carry_a_map(record)]
    if not fit:
        raise CamkitError(
            f"No adapter describes a {type(module).__name__}, and none of its layers has positions with a gradient; "
            f"name a layer, or write an adapter (camkit doctor shows the layers)."
        )
    chosen = _last(fit)
    adapter = Adapter(
        name="probed",
        targets={"last": Position(path=(chosen.path,))},
        layout=chosen.layout if chosen.layout != "none" else "auto",
        prefix=chosen.prefix if chosen.layout == "tokens" else None,
        grid=chosen.grid if chosen.layout == "tokens" else None,
    )
    kind = type(module).__name__
    rule = f"no adapter describes a {kind}; '{chosen.path}' is the last layer whose positions have gradients"
    return Resolved(adapter, rule)


def _can_carry_a_map(record: LayerRecord) -> bool:
    positions = record.grid[0] * record.grid[1] if record.grid else 0
    share = record.gradient_share or 0.0
    return bool(record.path) and record.calls == 1 and record.layout != "none" and positions > 1 and share > 0.5


def _last(fit: list[LayerRecord]) -> LayerRecord:
    # the walk lists layers in the order in which they start, so a container stands before its children although it
    # ends after them: of the last layer's containers, the outermost with the same positions is the stage as a whole
    last = fit[-1]
    for record in fit:
        if last.path.startswith(f"{record.path}.") and record.grid == last.grid and record.layout == last.layout:
            return record
    return last
