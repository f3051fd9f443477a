"""Writing an adapter for a model that none describes: what a probe found, as a TOML file to be read and corrected."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from camkit.adapter import Adapter, Position
from camkit.errors import CamkitError
from camkit.layout import Tokens
from camkit.probe import probe
from camkit.references import read
from camkit.walk import Walk, walk

# Attributes by which models commonly say how they cut an image; what is named here is written if it holds the measured
# value, so that the adapter fits the model's other sizes too.
_PREFIXES = ("num_prefix_tokens", "num_tokens")
_PATCHES = ("patch_embed.patch_size", "patch_size", "config.patch_size")
_CLASSES = ("num_classes", "config.num_labels")
_TOKEN_KEYS = ("prefix", "patch", "grid")


def suggest(module: nn.Module, images: Tensor, name: str = "mine") -> str:
    """The text of an adapter file for a model, from one probe and one walk with these images [B, C, H, W].

    Raises:
        CamkitError: no layer of the model can carry a map.
    """
    found = probe(module, images)
    probed = found.adapter
    seen = walk(module, images)
    size = (images.shape[2], images.shape[3])
    chosen = probed.targets["last"]
    shape = seen.layer(chosen.path[0]).shape or ()
    layout = probed.layout_of(module, probed.layer(module), shape, size)
    kind = type(module)
    lines = [
        f"# Suggested for {kind.__module__}.{kind.__qualname__} on images of {size[0]}x{size[1]}.",
        "# Read it, correct it, and check it: camkit adapters check FILE --model SPEC",
        "",
        "[[adapter]]",
        f"name = {_quoted(name)}",
        f"library = {_quoted(kind.__module__.split('.')[0])}",
        f"class = {_quoted(kind.__name__)}",
        f"layout = {_quoted(chosen.layout or 'auto')}",
        *(_of_tokens(module, layout, size) if isinstance(layout, Tokens) else ()),
        *_classifier(module, seen),
        "",
        f"# {found.rule}",
        *_targets(probed),
    ]
    text = "\n".join(lines) + "\n"
    _must_describe(text, module)
    return text


def _of_tokens(module: nn.Module, layout: Tokens, size: tuple[int, int]) -> Iterator[str]:
    prefix = _attribute(module, _PREFIXES, [layout.prefix])
    yield f"prefix = {prefix or layout.prefix}  # class and register tokens before the patches"
    height, width = (pixels / count for pixels, count in zip(size, layout.grid, strict=True))
    if height.is_integer() and width.is_integer():
        sides = [int(height), int(width)]
        same = sides[0] == sides[1]
        own = _attribute(module, _PATCHES, [sides, tuple(sides), *([sides[0]] if same else [])])
        yield f"patch = {own or (sides[0] if same else sides)}  # in pixels; the grid follows from the image's size"
    else:
        yield f"grid = {list(layout.grid)}  # height and width in patches, for this size of image only"


def _classifier(module: nn.Module, seen: Walk) -> Iterator[str]:
    """The last linear layer or 1x1 convolution whose output has the size of the model's, and the number of classes."""
    output = seen.layer("").shape
    if output is not None and len(output) == 2:
        parts = dict(module.named_modules())
        fit = [
            record.path
            for record in seen.layers
            if isinstance(parts[record.path], nn.Linear) and record.shape is not None and record.shape[-1] == output[1]
        ]
        if fit:
            yield f"classifier = {_quoted(fit[-1])}"
        own = _attribute(module, _CLASSES, [output[1]])
        if own:
            yield f"class_count = {own}"


def _targets(probed: Adapter) -> Iterator[str]:
    for name, position in probed.targets.items():
        yield f"targets.{name} = {_position(position, probed.targets['last'])}"


def _position(position: Position, last: Position) -> str:
    if position.layout == last.layout:
        return _quoted(position.path[0])
    return f"{{ path = {_quoted(position.path[0])}, layout = {_quoted(position.layout or 'auto')} }}"


def _attribute(module: nn.Module, paths: Iterable[str], values: Iterable[object]) -> str | None:
    """The first of the attributes that holds one of the values, as a reference."""
    wanted = list(values)
    return next((f'"@{path}"' for path in paths if read(module, path) in wanted), None)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _must_describe(text: str, module: nn.Module) -> None:
    import tomllib

    from camkit.adapter_files import AdapterFile

    (adapter,) = AdapterFile(**tomllib.loads(text)).adapter
    reason = adapter.mismatch(module)
    if reason is not None:
        raise CamkitError(f"An adapter cannot be written for a {type(module).__name__}: {reason}.")
