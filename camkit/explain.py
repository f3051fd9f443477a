"""The Explainer: one pass over a model for any number of methods, layers and targets."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from camkit import cut
from camkit.adapter import Adapter
from camkit.adapter_files import Resolved, find_adapter
from camkit.errors import CamkitError, CamkitWarning
from camkit.explanation import Explanation, warn_of_blanks
from camkit.fusions import Fusion
from camkit.injection import own_options
from camkit.methods import Method, as_method
from camkit.models import LoadedModel
from camkit.plan import Plan
from camkit.preprocessing import Preprocessing
from camkit.quantities import MEMORY
from camkit.registry import registry
from camkit.smoothing import augmented
from camkit.targets import Target, parse_targets

Many = list[Explanation]
AnyMethod = str | Callable[..., Any]


class Explainer:
    """Explains one model.

    Args:
        model: a `torch.nn.Module` in evaluation mode, or a model from `camkit.load_model`. It is left as it was.
        layer: the target layer: a name from the adapter (``last``, ``stage3``) or a module path (``layer4.-1``); a
            list gives several. By default the adapter's ``last``.
        adapter: an `Adapter`, or the path of an adapter file. By default it is found by the model's class.
        class_names: names of the classes, so that targets can be given by name.
        preprocessing: how images were normalised, which attacks need; a loaded model brings its own.
        memory: bytes that perturbed copies of a batch may take at a time, beside the model and its own pass.

    Raises:
        CamkitError: the model is in training mode or in TorchScript, or the layer does not exist.
    """

    def __init__(
        self,
        model: nn.Module | LoadedModel,
        layer: str | Sequence[str] | None = None,
        adapter: Adapter | Path | str | None = None,
        *,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        memory: int = MEMORY,
    ) -> None:
        loaded = model if isinstance(model, LoadedModel) else None
        module = loaded.module if loaded else model
        if not isinstance(module, nn.Module):
            raise CamkitError(f"An Explainer needs a torch.nn.Module or a loaded model, not {type(model).__name__}.")
        self.module = cut.unwrap(module)
        self.spec = loaded.spec if loaded else None
        self.weights = loaded.weights if loaded else None
        self.class_names = tuple(class_names) if class_names else loaded.class_names if loaded else None
        self.preprocessing = preprocessing or (loaded.preprocessing if loaded else None)
        self._given_probability = loaded.probability if loaded else None
        self._resolved = find_adapter(self.module, adapter)
        self.layer = layer
        self.memory = memory
        require_evaluation_mode(self.module)
        if layer is not None and self._resolved is not None:
            for name in [layer] if isinstance(layer, str) else layer:
                self._resolved.adapter.require(self.module, name)

    @property
    def probability(self) -> str:
        """``softmax`` or ``sigmoid``: how logits become probabilities."""
        return self._given_probability or (self._resolved.adapter.probability if self._resolved else "softmax")

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next((parameter.device for parameter in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's parameters."""
        return next((parameter.dtype for parameter in self.module.parameters()), torch.float32)

    def logits(self, images: Tensor) -> Tensor:
        """The model's logits [B, classes], differentiable in the images where the caller records a graph."""
        if images.requires_grad and torch.is_grad_enabled():
            cut.require_gradients(self.module)
        with cut.lock(self.module):
            return self._logits(images)

    def _logits(self, images: Tensor) -> Tensor:
        """The same for who has locked the model and seen that it has gradients."""
        output = self.resolve(images).adapter.output
        return cut.select_logits(self.module(images), output)

    def resolve(self, images: Tensor) -> Resolved:
        """The model's adapter and the reason for it; a model that none describes is probed with these images.

        A quantised one has no gradients that a probe could follow: it is explained at layers that are named.
        """
        if self._resolved is None and cut.is_quantised(self.module):
            rule = f"no adapter describes a {type(self.module).__name__}, and a quantised model cannot be probed"
            self._resolved = Resolved(Adapter(name="quantised"), rule)
        if self._resolved is None:
            from camkit.probe import probe

            self._resolved = probe(self.module, images)
        return self._resolved

    @overload
    def __call__(
        self,
        images: Tensor,
        method: AnyMethod = ...,
        target: "int | str | Tensor | Target" = ...,
        layer: str | None = ...,
        options: Mapping[str, Any] | None = ...,
        relu: bool = ...,
        *,
        fuse: str | None = ...,
        eigen_smooth: bool = ...,
        aug_smooth: bool = ...,
    ) -> Explanation: ...

    @overload
    def __call__(
        self,
        images: Tensor,
        method: AnyMethod | Sequence[AnyMethod] = ...,
        target: Any = ...,
        layer: str | Sequence[str] | None = ...,
        options: Mapping[str, Any] | None = ...,
        relu: bool = ...,
        *,
        fuse: str | None = ...,
        eigen_smooth: bool = ...,
        aug_smooth: bool = ...,
    ) -> Any: ...

    def __call__(
        self,
        images: Tensor,
        method: AnyMethod | Sequence[AnyMethod] = "gradcam",
        target: Any = "top",
        layer: str | Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        relu: bool = True,
        *,
        fuse: str | None = None,
        eigen_smooth: bool = False,
        aug_smooth: bool = False,
    ) -> Any:
        """Explains a batch in one pass.

        Args:
            images: [B, C, H, W], preprocessed as the model expects.
            method: name of a method or a function marked as one, or a list of these.
            target: ``top``, ``top-3``, ``last``, a class index or name, ``function:class``, a tensor [B] of indices, a
                callable from the model's output to scores [B], a `Target`, or a list of these.
            layer: as for the constructor.
            options: options by name: ``option`` or ``method.option``, ``function.option`` for a target function,
                ``fusion.option``; with several methods the short form is refused.
            relu: whether heatmaps keep the positive part only.
            fuse: name of a fusion, which makes one map of those of several layers.
            eigen_smooth: joins a map's channels by their first principal component in place of their sum.
            aug_smooth: averages the maps of six versions of each image: as it is and mirrored, at 0.9, 1 and 1.1 times
                its values.

        Returns:
            One Explanation; a list of them, in the order method, layer, target, if any of the three was a list. A
            method that has no layer, and a fusion, give one for all the layers.

        Raises:
            CamkitError: something given is not known or does not fit the model.
        """
        methods = [method] if isinstance(method, str) or callable(method) else list(method)
        chosen = layer if layer is not None else self.layer
        layers: list[str | None] = [chosen] if chosen is None or isinstance(chosen, str) else list(chosen)
        targets, several = parse_targets(target, self.class_names, registry().names("target", qualified=True))
        several = several or methods != [method] or not (fuse or chosen is None or isinstance(chosen, str))
        if not methods or not layers:
            raise CamkitError("At least one method and one layer are needed.")
        fusion: Fusion | None = registry().get("fusion", fuse) if fuse else None
        run = partial(
            self._explain,
            methods=methods,
            layers=layers,
            options=options or {},
            relu=relu,
            fuse=fuse,
            eigen_smooth=eigen_smooth,
        )
        found = augmented(run, images, targets) if aug_smooth else run(images, targets=targets)
        if fusion:
            found = self._fused(found, fusion, options or {})
        return found if several else found[0]

    def applicable(self, images: Tensor, *, single_pass: bool = False) -> list[str]:
        """The names of the methods that this model does not refuse, tried on these images.

        With `single_pass` only maps that one forward pass and the gradient of its head give.
        """
        methods: list[Method] = registry().values("method")
        layer = self.layer if isinstance(self.layer, str) else None
        found = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CamkitWarning)
            for method in methods:
                if single_pass and not (method.single_pass and method.kind == "map"):
                    continue
                try:
                    self(images, method.name, layer=layer)
                except CamkitError:
                    continue
                found.append(method.name)
        return sorted(found)

    @torch.inference_mode(False)
    def _explain(
        self,
        images: Tensor,
        *,
        targets: Sequence[Target],
        methods: Sequence[AnyMethod],
        layers: Sequence[str | None],
        options: Mapping[str, Any],
        relu: bool,
        fuse: str | None,
        eigen_smooth: bool,
    ) -> Many:
        images = self._checked(images)
        others = [*(target.name for target in targets), *([fuse] if fuse else [])]
        plan = self.plan(images, methods, layers, options, others=others, eigen_smooth=eigen_smooth)
        for method, target in product(plan.methods, targets):
            if not method.class_specific and target.function != "class":
                raise CamkitError(
                    f"The method '{method.name}' gives the same map for every class, so the target "
                    f"'{target.label}' has no meaning for it."
                )
        forward = plan.forward(images)
        made: dict[tuple[int, int, int], Explanation] = {}
        for t, target in enumerate(targets):
            own = own_options(options, target.name, plan.names, others)
            question = target.question(forward, own, self.probability)
            scored = plan.score(forward, question, last=t == len(targets) - 1)
            for (m, n), result in plan.results(forward, scored):
                method = plan.methods[m]
                made[m, n, t] = Explanation(
                    maps=result.maps.detach().float(),
                    logits=forward.logits.detach(),
                    targets=question.class_index,
                    scores=scored.scores.detach(),
                    method=plan.names[m],
                    options=plan.options[m],
                    layer=plan.layers[n].path if method.has_layer else None,
                    target=target,
                    size=(images.shape[2], images.shape[3]),
                    relu=relu,
                    class_names=self.class_names,
                    probability=self.probability,
                    kind=method.kind,
                    remarks=result.notes,
                    target_options=question.options,
                    smoothing=("eigen",) if eigen_smooth else (),
                )
                warn_of_blanks(made[m, n, t])
        order = product(range(len(plan.names)), range(len(layers)), range(len(targets)))
        return [made[key] for key in order if key in made]

    def _fused(self, found: Many, fusion: Fusion, options: Mapping[str, Any]) -> Many:
        """One explanation for the several layers of each method and target."""
        methods = list(dict.fromkeys(one.method for one in found))
        others = [*(one.target.name for one in found), fusion.name]
        chosen = fusion.signature.options(own_options(options, fusion.name, methods, others))
        groups: dict[tuple[int, int], Many] = {}
        for one in found:
            if one.kind != "map":
                raise CamkitError(f"The method '{one.method}' gives {one.kind}, which cannot be fused; only maps can.")
            # by identity: a method or a target may have been asked for twice
            groups.setdefault((id(one.options), id(one.targets)), []).append(one)
        return [
            replace(
                group[0],
                maps=fusion.fuse([one.maps for one in group], chosen, relu=group[0].relu),
                layer=" + ".join(filter(None, (one.layer for one in group))) or None,
                remarks=tuple(remark for one in group for remark in one.remarks),
                fusion=fusion.name,
            )
            for group in groups.values()
        ]

    def plan(
        self,
        images: Tensor,
        methods: Sequence[AnyMethod],
        layers: Sequence[str | None],
        options: Mapping[str, Any] | None = None,
        *,
        others: Sequence[str] = (),
        eigen_smooth: bool = False,
    ) -> Plan:
        """Everything that is decided before the pass: adapter, layers, methods and their options.

        `others` are whoever else may own some of the options: target functions and fusions.
        """
        require_evaluation_mode(self.module)
        resolved = self.resolve(images)
        found = [as_method(method) for method in methods]
        pairs = zip(methods, found, strict=True)
        names = [given if isinstance(given, str) else method.name for given, method in pairs]
        positions = [resolved.adapter.layer(self.module, name, images) for name in layers]
        return Plan(
            module=self.module,
            adapter=resolved.adapter,
            methods=found,
            names=names,
            layers=positions,
            options=[
                method.signature.options(own_options(options or {}, name, names, others))
                for method, name in zip(found, names, strict=True)
            ],
            eigen_smooth=eigen_smooth,
            memory=self.memory,
        )

    def _checked(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or 0 in images.shape:
            got = (
                f"a {images.dtype} tensor of shape {list(images.shape)}"
                if isinstance(images, Tensor)
                else type(images).__name__
            )
            raise CamkitError(
                f"Images were given as {got}; a floating-point tensor [batch, channels, height, width] is expected."
            )
        parameter = next(self.module.parameters(), None)
        if parameter is None:
            return images
        if parameter.is_inference():
            raise CamkitError(
                "The model was made in torch.inference_mode, where gradients do not exist; build it outside."
            )
        if parameter.device != images.device:
            raise CamkitError(
                f"The images are on {images.device}, the model is on {parameter.device}; move one to the other."
            )
        if parameter.dtype != images.dtype and not torch.is_autocast_enabled(images.device.type):
            raise CamkitError(
                f"The images are {images.dtype}, the model is {parameter.dtype}; convert one to the other."
            )
        return images


def require_evaluation_mode(module: nn.Module) -> None:
    """Refuses a model in training mode, whose dropout and batch statistics would make the explanation random."""
    training = next((name for name, child in module.named_modules() if child.training), None)
    if training is not None:
        which = f"its layer '{training}' is" if training else "it is"
        raise CamkitError(f"The model cannot be explained because {which} in training mode; call model.eval() first.")
