"""The cut: a model divided at its target layers into a trunk that runs without autograd and a head that is recorded.

Gradients are needed at the target layer only. A hook there detaches the layer's output, makes it a leaf and lets
autograd record from that point on, so the backward pass covers the head alone and the trunk keeps nothing.
"""

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from camkit.errors import CamkitError, suggestion


@dataclass(frozen=True)
class Layer:
    """A module at which a model is cut: the name it was asked for, its path, and the part of its output that counts."""

    name: str
    path: str
    module: nn.Module = field(repr=False, compare=False)
    element: int | str | None = None


@dataclass
class Forward:
    """What one forward pass left behind.

    Attributes:
        images: [B, C, H, W], as the model was given them.
        output: the model's own output.
        logits: [B, classes]; with logits for every pixel, their mean over the pixels; [B, 0] where the output holds
            none (a detector's boxes).
        captured: the output of each target layer, in the layer's own layout, by the layer's path.
        dense_logits: [B, classes, h, w] of a segmentation model.
        observed: what observers saw in the pass, by their class.
    """

    images: Tensor
    output: Any
    logits: Tensor
    captured: dict[str, Tensor]
    dense_logits: Tensor | None = None
    observed: Mapping[type, Any] = field(default_factory=dict)

    def gradients(self, scores: Tensor, *, retain_graph: bool) -> dict[str, Tensor]:
        """The gradient of the summed scores [B] at every target layer, by the layer's path.

        Images do not influence each other in evaluation mode, so the sum gives each image its own gradient.

        Raises:
            CamkitError: a layer has no influence on the scores.
        """
        if not scores.requires_grad:
            raise CamkitError(
                f"The scores do not depend on {_listed(self.captured)}; choose a layer that the output is made from."
            )
        paths = list(self.captured)
        found = torch.autograd.grad(
            scores,
            [self.captured[path] for path in paths],
            grad_outputs=torch.ones_like(scores),
            retain_graph=retain_graph,
            allow_unused=True,
        )
        for path, gradient in zip(paths, found, strict=True):
            if gradient is None:
                raise CamkitError(
                    f"The layer '{path}' has no influence on the scores; choose a layer that the output is made from."
                )
        return dict(zip(paths, found, strict=True))


class Cut:
    """A model cut at one or several target layers.

    The model is left as it was, also after an exception; threads may share it.
    """

    def __init__(self, module: nn.Module, layers: Sequence[Layer], output: int | str | None = None) -> None:
        self.module = module
        self.layers = tuple(layers)
        self.output = output

    def forward(
        self,
        images: Tensor,
        *,
        graph: bool,
        from_images: bool = False,
        observers: Sequence[AbstractContextManager[Any]] = (),
    ) -> Forward:
        """Runs the model once on images [B, C, H, W] and captures the target layers.

        With `graph`, autograd records the head, from the first target layer on; `from_images` records everything, and
        the images of the result are the leaf. Otherwise nothing is recorded. Observers are entered around the pass.

        Raises:
            CamkitError: a target layer never runs, runs more than once, or gives no tensor.
        """
        captured: dict[str, Tensor] = {}
        with ExitStack() as stack:
            stack.enter_context(lock(self.module))
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(frozen(self.module))
            hooks = [_Capture(layer, captured, graph) for layer in self.layers]
            for hook in hooks:
                stack.callback(hook.layer.module.register_forward_hook(hook).remove)
            # a tensor made in inference mode cannot be recorded; its copy can
            images = images.clone() if images.is_inference() else images.detach()
            if from_images:
                images = images.detach().requires_grad_()
                torch.set_grad_enabled(True)
            seen = [stack.enter_context(observer) for observer in observers]
            # a model whose first layer works in place may do so on a copy, not on the leaf
            output = self.module(images.clone() if from_images else images)
            with torch.set_grad_enabled(graph or from_images):
                logits, dense_logits = read_logits(output, self.output, images.shape[0])
        for hook in hooks:
            hook.check()
        observed = {type(observer): found for observer, found in zip(observers, seen, strict=True)}
        return Forward(images, output, logits, captured, dense_logits, observed)


def replay(module: nn.Module, images: Tensor, layer: Layer, tensor: Tensor) -> Any:
    """The model's output for images [B, C, H, W] when the layer gives `tensor` in place of its own output."""
    here = threading.get_ident()

    def exchange(child: nn.Module, inputs: Any, output: Any) -> Any:
        # the model may go on in place, and the tensor is the caller's
        return with_element(output, layer, tensor.clone()) if threading.get_ident() == here else None

    with lock(module), frozen(module):
        handle = layer.module.register_forward_hook(exchange)
        try:
            return module(images)
        finally:
            handle.remove()


class _Capture:
    """A forward hook that keeps a layer's output and, where gradients are wanted, starts the recording there."""

    def __init__(self, layer: Layer, captured: dict[str, Tensor], graph: bool) -> None:
        self.layer, self.captured, self.graph = layer, captured, graph
        self.thread = threading.get_ident()
        self.version = 0

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        # another thread may be using the model for a plain prediction, which is none of our business
        if threading.get_ident() != self.thread:
            return None
        path = self.layer.path
        if path in self.captured:
            raise CamkitError(
                f"The layer '{path}' runs more than once in a forward pass, so its activations are ambiguous; "
                f"choose a layer that runs once."
            )
        tensor = element(output, self.layer)
        if not self.graph:
            self.captured[path] = tensor.clone()
            return None
        leaf = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        self.captured[path] = leaf
        self.version = leaf._version
        torch.set_grad_enabled(True)
        # the model goes on with a copy: an in-place operation behind the layer must not change the activations
        return with_element(output, self.layer, leaf.clone())

    def check(self) -> None:
        """Refuses a layer that never ran, or whose output the model changed later through another reference."""
        path = self.layer.path
        if path not in self.captured:
            raise CamkitError(
                f"The layer '{path}' never runs in a forward pass, so it has no activations; "
                f"choose one of its children or another layer (camkit doctor lists those that run)."
            )
        if self.graph and self.captured[path]._version != self.version:
            raise CamkitError(
                f"The model overwrites the output of the layer '{path}' in place after that layer has run; "
                f"choose the layer behind it."
            )


_locks: "weakref.WeakKeyDictionary[nn.Module, threading.RLock]" = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


@contextmanager
def lock(module: nn.Module) -> Iterator[None]:
    """One thread at a time in a model: hooks and flags belong to the module, not to the thread."""
    with _locks_lock:
        own = _locks.setdefault(module, threading.RLock())
    with own:
        yield


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters that ask for no gradient, so that the head keeps nothing for them; afterwards as they were."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def unwrap(module: nn.Module) -> nn.Module:
    """The model inside `torch.compile` or DataParallel wrappers, whose hooks would not fire reliably."""
    while True:
        # by its attribute: the class of torch.compile's wrapper is in a module that takes seconds to load
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod  # type: ignore[assignment]
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def find_module(root: nn.Module, path: str) -> tuple[str, nn.Module]:
    """The module at a dotted path, whose parts may be negative indices (``layer4.-1``), with its plain path.

    Raises:
        CamkitError: there is no such module; the nearest paths are suggested.
    """
    module, names = root, list[str]()
    for part in path.split("."):
        children = dict(module.named_children())
        if part not in children and part.lstrip("-").isdigit():
            position = int(part)
            ordered = list(children)
            if -len(ordered) <= position < len(ordered):
                part = ordered[position]
        if part not in children:
            known = [name for name, _ in root.named_modules() if name]
            where = f" in '{'.'.join(names)}'" if names else ""
            ending = suggestion(path, known) or "camkit summary lists the layers."
            raise CamkitError(f"There is no layer '{path}': nothing is called '{part}'{where}; {ending}")
        module = children[part]
        names.append(part)
    return ".".join(names), module


def read_logits(output: Any, key: int | str | None, batch: int) -> tuple[Tensor, Tensor | None]:
    """The logits [B, classes] in a model's output, and those of every pixel [B, classes, h, w] if it has them.

    Where the output holds none, the logits are [B, 0].

    Raises:
        CamkitError: the output has no entry of the name that the adapter gives.
    """
    chosen = _entry(output, key)
    if isinstance(chosen, Tensor) and chosen.ndim in (1, 2) and chosen.is_floating_point():
        return (chosen.unsqueeze(1) if chosen.ndim == 1 else chosen), None
    if isinstance(chosen, Tensor) and chosen.ndim == 4 and chosen.shape[0] == batch:
        return chosen.mean(dim=(2, 3)), chosen
    return torch.empty(batch, 0), None


def select_logits(output: Any, key: int | str | None) -> Tensor:
    """The logits [B, classes] in a model's output: the entry that the adapter names, else the obvious one.

    Raises:
        CamkitError: there are none.
    """
    chosen = _entry(output, key)
    if not isinstance(chosen, Tensor) or chosen.ndim not in (1, 2):
        raise no_logits(output, key)
    return chosen.unsqueeze(1) if chosen.ndim == 1 else chosen


def no_logits(output: Any, key: int | str | None = None) -> CamkitError:
    """The error for an output in which logits were looked for in vain."""
    chosen = _entry(output, key)
    what = f"a tensor of shape {list(chosen.shape)}" if isinstance(chosen, Tensor) else type(output).__name__
    return CamkitError(
        f"The model's output is {what}, but logits of shape [batch, classes] are expected; name the entry that holds "
        f"them in an adapter ('output'), or choose a target that needs none."
    )


def _entry(output: Any, key: int | str | None) -> Any:
    if key is not None:
        try:
            return output[key]
        except (KeyError, IndexError, TypeError):
            raise CamkitError(
                f"The model's output has no entry {key!r}, which the adapter names as the logits."
            ) from None
    if isinstance(output, Mapping):
        return output.get("logits", output.get("out"))
    if hasattr(output, "logits"):
        return output.logits
    return output[0] if isinstance(output, tuple | list) and output else output


def element(output: Any, layer: Layer) -> Tensor:
    """The tensor that counts in a layer's output.

    Raises:
        CamkitError: there is none.
    """
    tensor = output
    if layer.element is not None and not isinstance(output, Tensor):
        try:
            tensor = output[layer.element]
        except (KeyError, IndexError, TypeError):
            raise CamkitError(f"The output of the layer '{layer.path}' has no element {layer.element!r}.") from None
    if not isinstance(tensor, Tensor):
        raise CamkitError(
            f"The layer '{layer.path}' gives {type(tensor).__name__}, not a tensor; state in the adapter which element "
            f"holds the activations, or choose another layer."
        )
    return tensor


def with_element(output: Any, layer: Layer, tensor: Tensor) -> Any:
    """A layer's output with another tensor in that place."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, Mapping):
        return type(output)({**output, layer.element: tensor})  # type: ignore[call-arg]
    position = range(len(output))[layer.element]  # type: ignore[index]
    parts = [tensor if index == position else part for index, part in enumerate(output)]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def _listed(paths: Mapping[str, Any]) -> str:
    return "the layer " + ", ".join(f"'{path}'" for path in paths)
