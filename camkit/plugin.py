"""What the author of a plugin writes: decorators that mark functions, and `collect`, which finds them.

A plugin is a module named in the entry-point group ``camkit``. It answers hooks (see `camkit.hookspecs`) with the
functions that it marked::

    from camkit import plugin

    @plugin.method("mean", paper="none")
    def mean(activations: Tensor) -> Tensor:
        return activations.mean(dim=1)

    @plugin.hookimpl
    def camkit_methods():
        return plugin.collect(__name__, "method")

Marking changes nothing: the function stays an ordinary function that can be called and tested by itself.
This module imports neither torch nor pluggy, so that a plugin's command line stays quick.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from camkit.errors import CamkitError

if TYPE_CHECKING:
    from camkit.hookspecs import hookimpl as hookimpl

Marked = TypeVar("Marked", bound=Callable[..., Any])
Norm = Literal["linf", "l2", "l0", "patch", "smallest"]


@dataclass(frozen=True)
class Mark:
    """What a decorator wrote on a function: the kind of item, its name, and the facts its author states."""

    kind: str
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def marks(item: object) -> tuple[Mark, ...]:
    """The marks on an object; most carry one, a decomposition that serves several operators carries several."""
    # vars, not getattr: a subclass of a marked class is not itself marked
    found: tuple[Mark, ...] = getattr(item, "__dict__", {}).get("__camkit__", ())
    return found


def _marker(kind: str, name: str, /, **facts: Any) -> Callable[[Marked], Marked]:
    # these signs part a name from others: A,B and distribution:name and A.option=value
    if not isinstance(name, str) or not name.strip() or set(name) & set(",:="):
        raise CamkitError(f"A {kind.replace('_', ' ')} cannot be called {name!r}: write text without ',', ':' and '='.")

    def mark(item: Marked) -> Marked:
        added = (*marks(item), Mark(kind, name, MappingProxyType(facts)))
        item.__camkit__ = added  # type: ignore[attr-defined]
        return item

    return mark


def method(
    name: str,
    *,
    paper: str,
    kind: Literal["map", "pixels", "concepts"] = "map",
    class_specific: bool = True,
    traceable: bool = True,
) -> Callable[[Marked], Marked]:
    """Marks a CAM method: a pure function of quantities.

    `paper` is where the formula comes from. `kind` says what the function returns: ``map`` the signed map
    [B, h, w], or [B, K, h, w] for the engine to sum over channels; ``pixels`` [B, C, H, W]; ``concepts`` [B, k, h, w].
    A method that is not `class_specific` refuses targets that differ only in their class. One that is not `traceable`
    cannot be exported, although all of its quantities can.
    """
    facts = {"paper": paper, "kind": kind, "class_specific": class_specific, "traceable": traceable}
    return _marker("method", name, **facts)


def target(name: str, *, inputs: tuple[str, ...] = ()) -> Callable[[Marked], Marked]:
    """Marks a target: a function from the model's output to one score [B] per image.

    `inputs` names the parameters that the user supplies beside the image (``class_index``, a mask, an embedding);
    they become inputs of an exported graph.
    """
    return _marker("target", name, inputs=inputs)


def quantity(
    name: str,
    *,
    traceable: bool,
    graph: bool = False,
    layer: bool = True,
    reruns: bool = False,
    observer: Callable[[bool], Any] | None = None,
) -> Callable[[Marked], Marked]:
    """Marks a quantity: what methods can ask for by the name of a parameter.

    The function takes a `camkit.quantities.Pass` and returns the value; its return annotation is the type that methods
    must write. `traceable` says whether it may appear in an exported graph; `graph` whether it differentiates, so that
    the pass must record the autograd graph of the head; `layer` whether it belongs to the target layer (a method that
    asks for none such has no layer); `reruns` whether the model, or a part of it, runs again. What has to watch the
    forward pass names an `observer`, a class of context managers made with one argument, whether a quantity that
    differentiates needs it; the pass keeps what it gives under ``scored.forward.observed[observer]``.
    """
    facts = {"traceable": traceable, "graph": graph, "layer": layer, "reruns": reruns, "observer": observer}
    return _marker("quantity", name, **facts)


def fusion(name: str, *, paper: str) -> Callable[[Marked], Marked]:
    """Marks a fusion: a function of ``maps: list[Tensor]``, one [B, h, w] for each layer, that returns one of them.

    The maps come as the heatmaps they would be: ReLU, one min-max, resized to the largest of them.
    """
    return _marker("fusion", name, paper=paper)


def attack(
    name: str,
    *,
    norm: Norm | tuple[Norm, ...],
    paper: str,
    goals: tuple[Literal["untargeted", "targeted"], ...] = ("untargeted", "targeted"),
    moves: Literal["prediction", "explanation"] = "prediction",
    black_box: bool = False,
) -> Callable[[Marked], Marked]:
    """Marks an attack: a function that returns changed images, in pixels [0, 1].

    `norm` names the threat models that it works in, the usual one first (see `camkit.threats`). `goals` says whether
    it can make any other class come out, a class that is named, or both. `moves` says what is to change: the
    prediction, or the explanation while the prediction stays. An attack that needs no gradient of the model says
    so with `black_box`, and is given none.
    """
    norms = (norm,) if isinstance(norm, str) else norm
    return _marker("attack", name, norms=norms, paper=paper, goals=goals, moves=moves, black_box=black_box)


def metric(
    name: str,
    *,
    paper: str,
    higher_is_better: bool,
    unit: str = "",
    reduce: "Literal['mean'] | Callable[[Any], Any]" = "mean",
    least_methods: int = 1,
) -> Callable[[Marked], Marked]:
    """Marks a metric: a function that returns one value [B] per sample, or several [B, ...]; NaN where it cannot judge.

    `unit` says what the value is in: ``share`` for 0 to 1, ``pixels``, ``logit``. `reduce` says how values become one
    for each method over a data set: ``mean``, without what is NaN, or a function from float64 arrays
    [methods, n samples, ...] to [methods], which sees the methods side by side, on the same samples. A metric that
    compares methods says by `least_methods` how many it needs.
    """
    facts = {"higher_is_better": higher_is_better, "unit": unit, "reduce": reduce, "least_methods": least_methods}
    return _marker("metric", name, paper=paper, **facts)


def dataset(name: str) -> Callable[[Marked], Marked]:
    """Marks a data set: a function that yields `camkit.evaluate.Sample` objects."""
    return _marker("dataset", name)


def engine(name: str) -> Callable[[Marked], Marked]:
    """Marks an engine: a function that hands tasks to the work and yields what comes of them (`camkit.engines`)."""
    return _marker("engine", name)


def model_source(name: str) -> Callable[[Marked], Marked]:
    """Marks a model source, the part before the colon of a model SPEC: a `camkit.models.ModelSource` class."""
    return _marker("model_source", name)


def decomposition(*operators: Any) -> Callable[[Marked], Marked]:
    """Marks a rule that writes the given operators in terms of exportable ones; same arguments, same result."""

    def mark(item: Marked) -> Marked:
        for operator in operators:
            item = _marker("decomposition", str(operator), operator=operator)(item)
        return item

    return mark


def function_mode(name: str) -> Callable[[Marked], Marked]:
    """Marks a `torch.overrides.TorchFunctionMode` class that is entered while a graph is traced."""
    return _marker("decomposition", name, mode=True)


def exporter(name: str, *, suffix: str, checked: bool = True) -> Callable[[Marked], Marked]:
    """Marks an exporter: a function that writes an `ExportRequest` to a file that ends in `suffix`.

    The suffix may have several parts (``.aoti.pt2``). Of a format that is `checked` the conformance kits write every
    method and adapter; a format that takes whatever graph could be traced, or takes long, need not be.
    """
    return _marker("exporter", name, suffix=suffix, checked=checked)


def collect(package: str, kind: str) -> list[Any]:
    """The objects marked with `kind` in a module, or in a package and its modules, in order of their names.

    Packages inside the package are not entered, so that what is heavy can live there. Only objects defined in the
    modules are returned, so importing a neighbour's function does not register it twice.
    """
    root = sys.modules.get(package) or importlib.import_module(package)
    modules = [root]
    for info in pkgutil.iter_modules(getattr(root, "__path__", ()), prefix=f"{package}."):
        modules.append(importlib.import_module(info.name))
    found: dict[int, Any] = {}
    for module in modules:
        for item in vars(module).values():
            here = getattr(item, "__module__", None) == module.__name__
            if here and any(mark.kind == kind for mark in marks(item)):
                found[id(item)] = item
    return list(found.values())


def __getattr__(name: str) -> Any:
    if name == "hookimpl":
        from camkit.hookspecs import hookimpl

        return hookimpl
    raise AttributeError(f"module 'camkit.plugin' has no attribute '{name}'")
