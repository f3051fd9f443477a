"""Choosing a target layer for a model that no adapter describes: one walk, and the last layer that can carry a map."""

from torch import Tensor, nn

from camkit.adapter import Adapter, Position
from camkit.adapter_files import Resolved
from camkit.errors import CamkitError
from camkit.rules import can_carry_a_map, last, last_by_stride
from camkit.walk import LayerRecord, walk

STAGES = {f"stage{number}": 2 ** (number + 1) for number in range(1, 5)}


def probe(module: nn.Module, images: Tensor) -> Resolved:
    """An adapter made for this model: it cuts at the last layer with positions whose gradients are not zero.

    Its ``stage1`` to ``stage4`` are the last such layers that divide the image's sides by 4, 8, 16 and 32.

    Raises:
        CamkitError: no layer qualifies; the sentence says which adapter facts to state.
    """
    seen = walk(module, images, gradients=True)
    fit = [record for record in seen.layers if can_carry_a_map(record)]
    if not fit:
        raise CamkitError(
            f"No adapter describes a {type(module).__name__}, and none of its layers has positions with a gradient; "
            f"name a layer, or write an adapter (camkit doctor shows the layers)."
        )
    chosen = last(fit, seen)
    size = (images.shape[2], images.shape[3])
    ends = last_by_stride(fit, seen, size)
    stages = {name: _position(ends[stride]) for name, stride in STAGES.items() if stride in ends}
    adapter = Adapter(
        name="probed",
        targets={"last": _position(chosen), **stages},
        prefix=chosen.prefix if chosen.layout == "tokens" else None,
        grid=chosen.grid if chosen.layout == "tokens" else None,
    )
    kind = type(module).__name__
    rule = f"no adapter describes a {kind}; '{chosen.path}' is the last layer whose positions have gradients"
    return Resolved(adapter, rule)


def _position(record: LayerRecord) -> Position:
    return Position(path=(record.path,), layout=record.layout if record.layout != "none" else None)
