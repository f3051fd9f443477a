"""The cut: a model divided at its target layers into a trunk that runs without autograd and a head that is recorded.

Gradients are needed at the target layer only. A hook there detaches the layer's output, makes it a leaf and lets
autograd record from that point on, so the backward pass covers the head alone and the trunk keeps nothing.
"""

import re
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camkit.errors import CamkitError, suggestion
from camkit.layout import channels_last
from camkit.registry import registry


@dataclass(frozen=True)
class Layer:
    """A module at which a model is cut: the name it was asked for, its path, and the part of its output that counts."""

    name: str
    path: str
    module: nn.Module = field(repr=False, compare=False)
    element: int | str | None = None


@dataclass(frozen=True)
class Reader:
    """How a model's output is read: the entry that counts, and whether it holds class scores or an embedding."""

    key: int | str | None = None
    classes: bool = True

    def logits(self, output: Any, batch: int) -> tuple[Tensor, Tensor | None]:
        """The logits [B, classes] in an output, and those of every pixel [B, classes, h, w] if it has them.

        Where the output holds none, the logits are [B, 0].

        Raises:
            CamkitError: the output has no entry of the name that the adapter gives.
        """
        chosen = _entry(output, self.key)
        if not self.classes or not isinstance(chosen, Tensor) or not chosen.is_floating_point():
            return torch.empty(batch, 0), None
        if chosen.ndim in (1, 2):
            return (chosen.unsqueeze(1) if chosen.ndim == 1 else chosen), None
        if chosen.ndim == 4 and chosen.shape[0] == batch:
            return chosen.mean(dim=(2, 3)), chosen
        return torch.empty(batch, 0), None

    def features(self, output: Any, size: tuple[int, int]) -> Tensor:
        """The output as one vector [B, D] per image of `size`: tokens and maps are averaged over their positions.

        Raises:
            CamkitError: the output holds no tensor with an entry for each image.
        """
        chosen = _entry(output, self.key)
        if not isinstance(chosen, Tensor) or not 1 <= chosen.ndim <= 4 or not chosen.is_floating_point():
            raise CamkitError(f"The model's output, {_in_words(chosen)}, cannot be read as one vector per image.")
        if chosen.ndim == 4:
            return chosen.mean(dim=(1, 2) if channels_last(tuple(chosen.shape), size) else (2, 3))
        return chosen.mean(dim=1) if chosen.ndim == 3 else chosen.reshape(chosen.shape[0], -1)


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
        reader: how the output was read.
    """

    images: Tensor
    output: Any
    logits: Tensor
    captured: dict[str, Tensor]
    dense_logits: Tensor | None = None
    observed: Mapping[type, Any] = field(default_factory=dict)
    reader: Reader = Reader()

    @property
    def features(self) -> Tensor:
        """The output as one vector [B, D] per image: the logits, or the embedding of a model without classes."""
        if self.logits.shape[1]:
            return self.logits
        return self.reader.features(self.output, (self.images.shape[2], self.images.shape[3]))

    def with_output(self, output: Any, batch: int) -> "Forward":
        """The same pass with another output, of `batch` images."""
        logits, dense_logits = self.reader.logits(output, batch)
        return replace(self, output=output, logits=logits, dense_logits=dense_logits)

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

    def __init__(self, module: nn.Module, layers: Sequence[Layer], reader: Reader | None = None) -> None:
        self.module = module
        self.layers = tuple(layers)
        self.reader = reader or Reader()

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
            CamkitError: a target layer never runs, runs more than once, or gives no tensor; or autograd is to record a
                quantised model.
        """
        if graph or from_images:
            require_gradients(self.module)
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
                logits, dense_logits = self.reader.logits(output, images.shape[0])
        for hook in hooks:
            hook.check()
        observed = {type(observer): found for observer, found in zip(observers, seen, strict=True)}
        return Forward(images, output, logits, captured, dense_logits, observed, self.reader)


def replay(module: nn.Module, images: Tensor, layer: Layer, tensor: Tensor) -> Any:
    """The model's output for images [B, C, H, W] when the layer gives `tensor` in place of its own output."""
    if torch.is_grad_enabled() and tensor.requires_grad:
        require_gradients(module)
    here = threading.get_ident()

    def exchange(child: nn.Module, inputs: Any, output: Any) -> Any:
        if threading.get_ident() != here:
            return None
        own = element(output, layer)
        # the model may go on in place, and the tensor is the caller's
        given = _quantised_like(tensor, own) if own.is_quantized else tensor.clone()
        return with_element(output, layer, given)

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
            self.captured[path] = tensor.dequantize() if tensor.is_quantized else tensor.clone()
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


_locks: "weakref.WeakKeyDictionary[nn.Module, threading.Lock]" = weakref.WeakKeyDictionary()
_locks_lock = threading.Lock()


class _Held(threading.local):
    """The models that this thread has locked."""

    def __init__(self) -> None:
        self.modules: set[int] = set()


_held = _Held()


@contextmanager
def lock(module: nn.Module) -> Iterator[None]:
    """One thread at a time in a model, which runs as it was written, compiled or not.

    Hooks and flags belong to the module, not to the thread; and compiled code passes by hooks or is compiled anew for
    them.
    """
    if id(module) in _held.modules:  # whoever asks a model again and again locks it once
        yield
        return
    with _locks_lock:
        own = _locks.setdefault(module, threading.Lock())
    with own, _uncompiled if _is_compiled(module) else nullcontext():
        _held.modules.add(id(module))
        try:
            yield
        finally:
            _held.modules.discard(id(module))


class _Uncompiled:
    """The compiler switched off; the switch is the process's, so the last one who leaves turns it back."""

    def __init__(self) -> None:
        self._lock, self._inside, self._stance = threading.Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._stance.close()


_uncompiled = _Uncompiled()


def _is_compiled(module: nn.Module) -> bool:
    """Whether a model or a part of it was compiled: by `torch.compile`, in place, or in its forward function alone."""
    return any(
        hasattr(part, "_orig_mod")
        or getattr(part, "_compiled_call_impl", None) is not None
        or hasattr(part.forward, "_torchdynamo_orig_callable")
        for part in module.modules()
    )


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
    """The model inside `torch.compile` and data-parallel wrappers, whose hooks would not fire reliably.

    Raises:
        CamkitError: inside is a TorchScript module.
    """
    while True:
        # by its attribute: the class of torch.compile's wrapper is in a module that takes seconds to load
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod  # type: ignore[assignment]
        elif isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(module, torch.jit.ScriptModule):
            raise CamkitError(
                f"The layers of a scripted model ({type(module).__name__}) cannot be watched, because TorchScript runs "
                f"without them; give the Python model that was scripted or traced."
            )
        else:
            return module


def require_gradients(module: nn.Module) -> None:
    """Refuses a quantised model where gradients are needed.

    Raises:
        CamkitError: no gradient passes through a part of the model, because it computes with integers.
    """
    found = next(_quantised(module), None)
    if found is not None:
        path, what = found
        which = f"its layer '{path}' is" if path else "it is"
        methods = [method for method in registry().values("method") if method.kind == "map" and method.single_pass]
        free = [method.name for method in methods if not any(quantity.graph for quantity in method.quantities)]
        raise CamkitError(
            f"The model has no gradients because {which} quantised ({what}); explain the model that was quantised, or "
            f"use a method that needs none, such as {', '.join(sorted(free))}."
        )


def is_quantised(module: nn.Module) -> bool:
    """Whether a part of a model computes with integers, through which no gradient passes."""
    return next(_quantised(module), None) is not None


def _quantised(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Paths of the parts that are quantised, and how."""
    for path, part in module.named_modules():
        kind = type(part)
        # the one class in there that computes with floating-point numbers stands in models that are not quantised yet
        if _QUANTISED_MODULES.match(kind.__module__) and not kind.__name__.endswith("FloatFunctional"):
            yield path, f"{kind.__module__.partition('.modules')[0]}.{kind.__name__}"
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if tensor.is_quantized:
                yield path, str(tensor.dtype)
            elif _QUANTISED_TENSORS.search(f"{type(tensor).__module__}.{type(tensor).__name__}") and _is_opaque(tensor):
                yield path, type(tensor).__name__


_QUANTISED_MODULES = re.compile(r"torch\.ao\.nn\.(\w+\.)*quantized\b")
_QUANTISED_TENSORS = re.compile("quant", re.IGNORECASE)


@torch.inference_mode(False)
@torch.enable_grad()
def _is_opaque(weight: Tensor) -> bool:
    """Whether no gradient passes through a weight: where weights alone are quantised, one does."""
    if weight.ndim != 2:
        return True
    inputs = torch.ones(1, weight.shape[1], dtype=weight.dtype, device=weight.device, requires_grad=True)
    return not F.linear(inputs, weight.detach()).requires_grad


def _quantised_like(tensor: Tensor, original: Tensor) -> Tensor:
    """A tensor in the integers of another one."""
    return torch.quantize_per_tensor(tensor, original.q_scale(), original.q_zero_point(), original.dtype)


def find_module(root: nn.Module, path: str) -> tuple[str, nn.Module]:
    """The module at a dotted path, whose parts may be negative indices (``layer4.-1``), with its plain path.

    The path may be that of the model before some of its parts were compiled.

    Raises:
        CamkitError: there is no such module; the nearest paths are suggested.
    """
    module, names = root, list[str]()
    for part in path.split("."):
        while hasattr(module, "_orig_mod") and part != "_orig_mod":
            module = module._orig_mod  # type: ignore[assignment]
            names.append("_orig_mod")
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
    what = _in_words(chosen) if isinstance(chosen, Tensor) else type(output).__name__
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
    """The tensor that counts in a layer's output: the one that the layer names, else the only one.

    Raises:
        CamkitError: there is none, or more than one.
    """
    if isinstance(output, Tensor):
        return output
    if layer.element is None:
        tensors = [part for _, part in _parts(output) if isinstance(part, Tensor)]
        if len(tensors) != 1:
            raise CamkitError(
                f"The layer '{layer.path}' gives {_in_words(output)}, not one tensor; state in an adapter which "
                f"element of it holds the activations (targets.NAME = {{ path = …, element = 0 }}), or choose another "
                f"layer."
            )
        return tensors[0]
    try:
        tensor = output[layer.element]
    except (KeyError, IndexError, TypeError):
        raise CamkitError(f"The output of the layer '{layer.path}' has no element {layer.element!r}.") from None
    if not isinstance(tensor, Tensor):
        raise CamkitError(
            f"The element {layer.element!r} of the output of the layer '{layer.path}' is {_in_words(tensor)}, not a "
            f"tensor; state another."
        )
    return tensor


def with_element(output: Any, layer: Layer, tensor: Tensor) -> Any:
    """A layer's output with another tensor in the place of the one that counts."""
    if isinstance(output, Tensor):
        return tensor
    named = layer.element
    if named is None:
        named = next(key for key, part in _parts(output) if isinstance(part, Tensor))
    if isinstance(output, Mapping):
        return type(output)({**output, named: tensor})  # type: ignore[call-arg]
    position = range(len(output))[named]  # type: ignore[index]
    parts = [tensor if index == position else part for index, part in enumerate(output)]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def _parts(output: Any) -> list[tuple[Any, Any]]:
    """The entries of a tuple, list or mapping with their keys; nothing of anything else."""
    if isinstance(output, Mapping):
        return list(output.items())
    return list(enumerate(output)) if isinstance(output, tuple | list) else []


def _in_words(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)}"
    count = sum(isinstance(part, Tensor) for _, part in _parts(output))
    return f"a {type(output).__name__} of {count} tensors" if _parts(output) else type(output).__name__


def _listed(paths: Mapping[str, Any]) -> str:
    return "the layer " + ", ".join(f"'{path}'" for path in paths)
