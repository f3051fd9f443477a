"""One walk over a model's layers: what each gives, how often it runs, and how much of the gradient it sees.

The summary, the doctor and the choice of a layer are views of this one walk.
"""

import heapq
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from camkit.cut import frozen, lock, unwrap
from camkit.errors import CamkitError, first_line, unknown

Layout = Literal["NCHW", "NHWC", "tokens", "none"]

# class, distillation and register tokens; no common model has more
_MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class LayerRecord:
    """What one walk saw of one module; of a module that runs several times, the last call.

    Attributes:
        path: dotted path in the model; empty for the model itself. A module with several paths has its first.
        class_name: the name of its class.
        depth: how many modules it is inside of.
        is_leaf: whether it holds no other modules.
        calls: how many times it ran.
        shape: of its output, or of the first tensor in it; None where it never ran or gives no tensor.
        output: its output in words: ``[1, 64, 56, 56]``, or the parts of a tuple or mapping.
        output_bytes: memory of all its outputs, of all calls.
        parameters: how many it holds itself; a parameter that several modules hold counts for the first that runs.
        trainable: how many of these require a gradient.
        parameter_bytes: memory of these.
        layout: a guess by shape of where positions and channels are; ``none`` where there are no positions.
        grid: the positions (h, w) by that guess, or None.
        prefix: how many tokens come before those of the grid.
        peak_activation: largest absolute value of the output; NaN if there is one in it, None without floating output.
        gradient_share: fraction of positions, without prefix tokens, where the gradient of the class score is not zero;
            None in a walk without gradients.
        peak_gradient: largest absolute gradient anywhere in the output; None in a walk without gradients.
        is_cut: whether all that the score takes from the image passes through this output; None likewise.
    """

    path: str
    class_name: str
    depth: int
    is_leaf: bool
    calls: int
    shape: tuple[int, ...] | None
    output: str
    output_bytes: int
    parameters: int
    trainable: int
    parameter_bytes: int
    layout: Layout
    grid: tuple[int, int] | None
    prefix: int
    peak_activation: float | None
    gradient_share: float | None
    peak_gradient: float | None
    is_cut: bool | None


@dataclass(frozen=True)
class Walk:
    """The layers of a model in the order in which they start, the model itself first, then those that never ran.

    `explained` are the classes [B] whose scores the gradients are of; empty in a walk without gradients.
    `training` says whether the model was found in training mode; the walk looks at it in evaluation mode.
    """

    layers: tuple[LayerRecord, ...]
    input_shape: tuple[int, ...]
    input_bytes: int
    gradients: bool
    explained: tuple[int, ...]
    training: bool

    def layer(self, path: str) -> LayerRecord:
        """The record of the module at a dotted path; `CamkitError` with the nearest paths where there is none."""
        for record in self.layers:
            if record.path == path:
                return record
        raise unknown("layer", path, [record.path for record in self.layers if record.path])


def walk(module: nn.Module, images: Tensor, *, gradients: bool = False, class_index: int | None = None) -> Walk:
    """Walks over the layers of a model in one forward pass, and one backward pass if `gradients` are asked for.

    `images` [B, C, H, W] are given to the model as they are. The gradients are those of one class score per image:
    of `class_index`, or of the top class where it is None or negative; an output with further dimensions is averaged
    over them first. Compiled and data-parallel models are walked as the model that they wrap.

    The model is left exactly as it was, also after an error. Only shapes are kept; with gradients the backward pass
    needs the memory that it always needs. Raises `CamkitError` where the model cannot run on the images, and names the
    layer that failed.
    """
    module = unwrap(module)
    _check(module, images, gradients)
    training = module.training
    tracks = {path: _Track() for path, _ in module.named_modules()}
    explained: tuple[int, ...] = ()
    cuts: set[Any] = set()
    with ExitStack() as stack:
        stack.enter_context(lock(module))
        stack.enter_context(_evaluation_mode(module))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        # the graph then holds what comes from the image, and nothing that comes from parameters alone
        if gradients:
            stack.enter_context(frozen(module))
        watch = _Watch(tracks, tuple(images.shape), gradients)
        stack.callback(watch.detach)
        watch.attach(module)
        # a leaf that requires a gradient cannot be changed in place, which a first layer may want to do
        leaf = images.detach().clone().requires_grad_(gradients)
        try:
            output = module(leaf.clone())
        except Exception as error:
            raise CamkitError(_failure(watch.running, images, error)) from error
        if gradients:
            score, explained = _class_score(output, class_index)
            cuts = _cuts(score)
            watch.forward = False
            _backward(score, leaf)
    return Walk(
        layers=_records(module, tracks, gradients, cuts),
        input_shape=tuple(images.shape),
        input_bytes=images.numel() * images.element_size(),
        gradients=gradients,
        explained=explained,
        training=training,
    )


@dataclass
class _Track:
    """What the hooks write down about one module during the walk."""

    calls: int = 0
    started: int = -1
    shape: tuple[int, ...] | None = None
    output: str = "-"
    output_bytes: int = 0
    layout: Layout = "none"
    grid: tuple[int, int] | None = None
    prefix: int = 0
    peak_activation: float | None = None
    gradients: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By call: the share of positions with a gradient, and the largest absolute gradient."""
    node: Any = None
    """Where the autograd graph has the output of the last call."""


def _check(module: nn.Module, images: Tensor, gradients: bool) -> None:
    if images.ndim != 4 or 0 in images.shape:
        raise CamkitError(f"A walk needs images [batch, channels, height, width], not {_in_words(images)}.")
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise CamkitError("The layers of a scripted model cannot be watched; give the model that was scripted.")
    if any(is_lazy(parameter) for parameter in module.parameters()):
        raise CamkitError("The model has layers without a size yet; run it once on an image first.")
    if gradients and any(parameter.is_inference() for parameter in module.parameters()):
        raise CamkitError(
            "The model was built under torch.inference_mode, which forbids gradients for good; build it outside."
        )


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode by flag: some models rebuild themselves for good when eval() is called."""
    before = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in before:
            part.training = False
        yield
    finally:
        for part, flag in before:
            part.training = flag


class _Watch:
    """Hooks on every module of a model that fill one track each."""

    def __init__(self, tracks: dict[str, _Track], image_shape: tuple[int, ...], gradients: bool):
        self.running: list[str] = []
        """The modules that run just now, outermost first."""
        self.forward = True
        """Until the backward pass, in which checkpointed modules run again without that being a call of theirs."""
        self._tracks = tracks
        self._image_shape = image_shape
        self._gradients = gradients
        self._thread = threading.get_ident()
        self._started = 0
        self._grids: list[tuple[int, int]] = []
        self._handles: list[RemovableHandle] = []

    def attach(self, module: nn.Module) -> None:
        for path, part in module.named_modules():
            self._handles.append(part.register_forward_pre_hook(partial(self._before, path)))
            self._handles.append(part.register_forward_hook(partial(self._after, path)))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _foreign(self) -> bool:
        # threads may share a model: what another one runs is none of this walk's business
        return self.forward and threading.get_ident() != self._thread

    def _before(self, path: str, *_: object) -> None:
        if not self._foreign() and self.forward:
            self.running.append(path)
            if self._tracks[path].started < 0:
                self._tracks[path].started = self._started
                self._started += 1

    def _after(self, path: str, _module: nn.Module, _inputs: object, output: object) -> Tensor | None:
        if self._foreign():
            return None
        track = self._tracks[path]
        first = next(_tensors(output), None)
        if self.forward:
            self.running.pop()
            track.calls += 1
            self._write_down(track, output, first)
        if not (self._gradients and first is not None and first.requires_grad):
            return None
        # a view that is changed in place afterwards loses its hook; a tensor of its own keeps it
        replaced = first is output and first._is_view()
        watched = first.clone() if replaced else first
        watched.register_hook(partial(_write_gradient, track, track.calls))
        if self.forward:
            track.node = watched.grad_fn
        return watched if replaced else None

    def _write_down(self, track: _Track, output: object, first: Tensor | None) -> None:
        track.output = _in_words(output)
        track.output_bytes += sum(tensor.numel() * tensor.element_size() for tensor in _tensors(output))
        if first is None or first.ndim == 0:
            return
        track.shape = tuple(first.shape)
        track.layout, track.grid, track.prefix = _guess_layout(track.shape, self._image_shape, self._grids)
        if track.layout in ("NCHW", "NHWC") and track.grid and track.grid != (1, 1):
            self._grids.append(track.grid)
        if first.is_floating_point() and first.numel() and not first.is_meta:
            track.peak_activation = float(first.detach().abs().amax())


def _write_gradient(track: _Track, call: int, gradient: Tensor) -> None:
    if call != track.calls:
        return  # what is known of the layer is of its last call
    there = gradient.detach() != 0
    if track.layout == "NCHW":
        there = there.any(dim=1)
    elif track.layout == "tokens":
        there = there[:, track.prefix :].any(dim=2)
    elif there.ndim > 1:
        there = there.any(dim=-1)
    track.gradients[call] = float(there.float().mean()), float(gradient.detach().abs().amax())


def _guess_layout(
    shape: tuple[int, ...], image_shape: tuple[int, ...], grids: list[tuple[int, int]]
) -> tuple[Layout, tuple[int, int] | None, int]:
    """The layout, the grid and the number of prefix tokens of an output, by its shape and the grids seen so far."""
    size = (image_shape[2], image_shape[3])
    if shape[0] != image_shape[0]:
        return "none", None, 0
    if len(shape) == 4:
        rows, columns = shape[2:]
        # heads x tokens x tokens is attention, however much it looks like channels on a grid
        attention = rows == columns and any(0 <= rows - h * w <= _MOST_PREFIX_TOKENS for h, w in grids if h * w > 1)
        if not attention and _is_grid(rows, columns, size):
            return "NCHW", (rows, columns), 0
        if _is_grid(shape[1], shape[2], size):
            return "NHWC", (shape[1], shape[2]), 0
    if len(shape) == 3:
        found = _token_grid(shape[1], size, grids)
        if found:
            return "tokens", found, shape[1] - found[0] * found[1]
    return "none", None, 0


def _is_grid(rows: int, columns: int, size: tuple[int, int]) -> bool:
    """Whether the positions have the proportions of the image, up to rounding, and are not more than its pixels."""
    height, width = size
    alike = abs(rows - columns * height / width) <= 1 or abs(columns - rows * width / height) <= 1
    return alike and rows <= height and columns <= width


def _token_grid(tokens: int, size: tuple[int, int], grids: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The grid that tokens are laid out on: the last one seen that fits, or else one with the image's proportions."""
    for rows, columns in reversed(grids):
        if 0 <= tokens - rows * columns <= _MOST_PREFIX_TOKENS:
            return rows, columns
    for prefix in range(min(_MOST_PREFIX_TOKENS, tokens - 4) + 1):
        rows = round(((tokens - prefix) * size[0] / size[1]) ** 0.5)
        if rows > 1 and (tokens - prefix) % rows == 0 and _is_grid(rows, (tokens - prefix) // rows, size):
            return rows, (tokens - prefix) // rows
    return None


def _tensors(output: object) -> Iterator[Tensor]:
    """The tensors in an output, whatever holds them, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)
    elif is_dataclass(output):
        for entry in fields(output):
            yield from _tensors(getattr(output, entry.name))


def _in_words(output: object) -> str:
    if isinstance(output, Tensor):
        return str(list(output.shape))
    if isinstance(output, Mapping):
        return "{" + ", ".join(f"{name}: {_in_words(part)}" for name, part in output.items()) + "}"
    if isinstance(output, list | tuple):
        return "(" + ", ".join(_in_words(part) for part in output) + ")"
    return "None" if output is None else type(output).__name__


def _class_score(output: object, class_index: int | None) -> tuple[Tensor, tuple[int, ...]]:
    """The sum over the batch of one class score per image, and the classes."""
    logits = next((tensor for tensor in _tensors(output) if tensor.is_floating_point() and tensor.ndim), None)
    if logits is None:
        raise CamkitError(f"The model gives no class scores but {_in_words(output)}; walk without gradients.")
    logits = logits.unsqueeze(1) if logits.ndim == 1 else logits.flatten(2).mean(dim=2) if logits.ndim > 2 else logits
    classes = logits.shape[1]
    if class_index is not None and class_index >= classes:
        raise CamkitError(f"There is no class {class_index}; the model has {classes} classes, counted from 0.")
    if class_index is None or class_index < 0:
        chosen = logits.detach().argmax(dim=1)
    else:
        chosen = torch.full((len(logits),), class_index, device=logits.device)
    return logits.gather(1, chosen.unsqueeze(1)).sum(), tuple(chosen.tolist())


def _backward(score: Tensor, leaf: Tensor) -> None:
    """Sends the gradient back to the images, and nothing into the parameters' .grad."""
    if not score.requires_grad:
        return
    try:
        torch.autograd.grad(score, leaf, allow_unused=True)
    except RuntimeError as error:
        raise CamkitError(
            f"The gradient of the class score cannot be computed: {first_line(error).rstrip('.')}."
        ) from error


def _failure(running: list[str], images: Tensor, error: Exception) -> str:
    place = f" at layer '{running[-1]}'" if running and running[-1] else ""
    return (
        f"The model cannot run on images {list(images.shape)}: it fails{place} with: {first_line(error).rstrip('.')}."
    )


def _cuts(score: Tensor) -> set[Any]:
    """The nodes of the autograd graph that every path from the score to the image passes through."""
    # the larger its number, the later a node was made: taken in this order, none is reached again after it was left
    found: set[Any] = set()
    waiting: list[tuple[int, int, Any]] = []
    seen: set[Any] = set()

    def add(node: Any) -> None:
        if node is not None and node not in seen:
            seen.add(node)
            heapq.heappush(waiting, (-node._sequence_nr(), len(seen), node))

    add(score.grad_fn)
    while waiting:
        *_, node = heapq.heappop(waiting)
        if not waiting:
            found.add(node)
        # the image itself has the largest number, and is where all paths end
        for following, _ in node.next_functions:
            if following is not None and following.next_functions:
                add(following)
    return found


def _records(module: nn.Module, tracks: dict[str, _Track], gradients: bool, cuts: set[Any]) -> tuple[LayerRecord, ...]:
    parts = dict(module.named_modules())
    # sorted keeps the order of definition among those that never ran
    paths = sorted(parts, key=lambda path: tracks[path].started if tracks[path].calls else float("inf"))
    counted: set[int] = set()
    records = []
    for path in paths:
        part, track = parts[path], tracks[path]
        own = [parameter for parameter in part.parameters(recurse=False) if id(parameter) not in counted]
        counted.update(id(parameter) for parameter in own)
        share, peak = track.gradients.get(track.calls, (0.0, 0.0)) if gradients else (None, None)
        records.append(
            LayerRecord(
                path=path,
                class_name=type(part).__name__,
                depth=path.count(".") + 1 if path else 0,
                is_leaf=next(part.children(), None) is None,
                calls=track.calls,
                shape=track.shape,
                output=track.output,
                output_bytes=track.output_bytes,
                parameters=sum(parameter.numel() for parameter in own),
                trainable=sum(parameter.numel() for parameter in own if parameter.requires_grad),
                parameter_bytes=sum(parameter.numel() * parameter.element_size() for parameter in own),
                layout=track.layout,
                grid=track.grid,
                prefix=track.prefix,
                peak_activation=track.peak_activation,
                gradient_share=share,
                peak_gradient=peak,
                is_cut=track.node in cuts if gradients else None,
            )
        )
    return tuple(records)
