"""Rules that find a target layer: what an adapter can write in place of a path.

``@trunk_end`` reads the model's structure; ``@stride:N`` measures it, with one walk on the images to be explained.
"""

import math
import weakref
from collections.abc import Sequence
from fnmatch import fnmatch

from torch import Tensor, nn

from camkit.errors import CamkitError
from camkit.walk import LayerRecord, Walk, walk

TRUNK_END = "@trunk_end"
STRIDE = "@stride:"
RULE = r"@trunk_end|@stride:[1-9]\d*"

_CONTAINERS = ("Sequential", "ModuleList")

# of the positions of a layer, how many must have a gradient
_MOST_POSITIONS = 0.5


def is_measured(path: str) -> bool:
    """Whether a rule needs images."""
    return path.startswith(STRIDE)


def trunk_end(module: nn.Module, readout: Sequence[str], auxiliary: Sequence[str]) -> str | None:
    """The path of the last child in front of the first one that reads the features out; None where there is none.

    `readout` and `auxiliary` are patterns of names (``head*``); an auxiliary child does not count. Of a container the
    last part is taken, since containers are often iterated and then never run themselves.
    """
    path = None
    for name, _ in module.named_children():
        if _matches(name, readout):
            break
        if not _matches(name, auxiliary):
            path = name
    return None if path is None else last_part(module, path)


def last_part(module: nn.Module, path: str, containers: tuple[type, ...] = (nn.Sequential, nn.ModuleList)) -> str:
    """The path of the last module inside plain containers: `path` itself where it is none of `containers`."""
    part = module.get_submodule(path)
    while type(part) in containers and len(part):  # type: ignore[arg-type]
        name = [name for name, _ in part.named_children()][-1]
        path, part = f"{path}.{name}", part.get_submodule(name)
    return path


_measured: "weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, int, str], dict[int, str]]]"
_measured = weakref.WeakKeyDictionary()


def at_stride(module: nn.Module, images: Tensor, stride: int, end: str) -> str:
    """The path of the last layer whose positions are the image's divided by `stride` and have a gradient.

    `end` is the path of the last layer of the trunk, behind which none is taken: what reads the features out may have
    positions, too, and resize them. One walk over the model per size of image; the answer is kept as long as the model
    lives.

    Raises:
        CamkitError: the model has no such layer; the sentence says which strides it has.
    """
    size = (images.shape[2], images.shape[3])
    kept = _measured.setdefault(module, {})
    if (*size, end) not in kept:
        kept[*size, end] = _by_stride(walk(module, images[:1], gradients=True), size, end)
    found = kept[*size, end]
    if stride not in found:
        raise CamkitError(
            f"A {type(module).__name__} has no layer that divides images of {size[0]}x{size[1]} by {stride} and has a "
            f"gradient; it has layers that divide them by {', '.join(map(str, sorted(found))) or 'nothing'}."
        )
    return found[stride]


def _by_stride(seen: Walk, size: tuple[int, int], end: str) -> dict[int, str]:
    places = {record.path: place for place, record in enumerate(seen.layers)}
    trunk = [
        record for record in seen.layers if places[record.path] <= places[end] or record.path.startswith(f"{end}.")
    ]
    found = last_by_stride([record for record in trunk if can_carry_a_map(record)], seen, size)
    return {stride: record.path for stride, record in found.items()}


def last_by_stride(fit: Sequence[LayerRecord], seen: Walk, size: tuple[int, int]) -> dict[int, LayerRecord]:
    """The last of some layers of a walk for each stride that they have on images of `size`."""
    grouped: dict[int, list[LayerRecord]] = {}
    for record in fit:
        grouped.setdefault(stride_of(record, size), []).append(record)
    return {stride: last(records, seen) for stride, records in grouped.items() if stride}


def stride_of(record: LayerRecord, size: tuple[int, int]) -> int:
    """By what power of two a layer divides images of `size`, the nearest one; 0 where height and width differ."""
    powers = {round(math.log2(pixels / positions)) for pixels, positions in zip(size, record.grid or (), strict=True)}
    return int(2 ** powers.pop()) if len(powers) == 1 else 0


def can_carry_a_map(record: LayerRecord) -> bool:
    """Whether a layer ran once, gives one tensor, and has several positions, most of them with a gradient."""
    positions = record.grid[0] * record.grid[1] if record.grid else 0
    share = record.gradient_share or 0.0
    once = bool(record.path) and record.calls == 1 and record.output.count("[") == 1
    return once and record.layout != "none" and positions > 1 and share > _MOST_POSITIONS


def last(fit: Sequence[LayerRecord], seen: Walk) -> LayerRecord:
    """The last of some layers of a walk with gradients.

    It is one that all information passes through, where there is such a layer with the positions of the last one: the
    end of a residual block rather than a part of the next. Nor is it a part of a block that ends with other positions,
    where there is a choice. Of containers that end together the outermost counts.
    """
    # the walk lists layers in the order in which they start, so a container stands before its children although it
    # ends after them
    chosen = [record for record in fit if record.is_cut and record.grid == fit[-1].grid] or list(fit)
    chosen = [record for record in chosen if not _is_inside_other_positions(record, seen)] or chosen
    final = chosen[-1]
    for record in chosen:
        if final.path.startswith(f"{record.path}.") and record.grid == final.grid and record.layout == final.layout:
            return record
    return final


def _is_inside_other_positions(record: LayerRecord, seen: Walk) -> bool:
    """Whether a block around the layer ends with other positions; plain containers and the model do not count."""
    around = [one for one in seen.layers if one.path and record.path.startswith(f"{one.path}.") and one.grid]
    return any(one.grid != record.grid and one.class_name not in _CONTAINERS for one in around)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name.lower(), pattern.lower()) for pattern in patterns)
