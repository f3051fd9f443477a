"""A method as the registry knows it: a pure function of quantities, with its options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from camkit import plugin
from camkit.components import principal_component
from camkit.errors import CamkitError
from camkit.injection import Signature, blaming, in_words, parse_signature
from camkit.quantities import Pass, Quantity

if TYPE_CHECKING:
    from camkit.registry import Registry

Kind = Literal["map", "pixels", "concepts"]
_SHAPES = {"map": "[B, h, w] or [B, K, h, w]", "pixels": "[B, C, H, W]", "concepts": "[B, k, h, w]"}


@dataclass(frozen=True)
class Result:
    """What a method gave, in the shape of its kind, and what it said about single images: (bool [B], sentence)."""

    maps: Tensor
    notes: tuple[tuple[Tensor, str], ...] = ()


@dataclass(frozen=True)
class Method:
    """A registered CAM method; `traceable` says whether it can appear in an exported graph."""

    name: str
    function: Callable[..., Any]
    signature: Signature
    quantities: tuple[Quantity, ...]
    kind: Kind
    class_specific: bool
    traceable: bool
    paper: str

    @classmethod
    def parse(cls, function: Callable[..., Any], mark: plugin.Mark, registry: "Registry") -> "Method":
        """Reads a marked function; what it asks for must be registered quantities."""
        known = {quantity.name: quantity for quantity in registry.values("quantity")}
        types = {name: quantity.type for name, quantity in known.items()}
        signature = parse_signature(function, f"the method '{mark.name}'", types)
        return cls(
            name=mark.name,
            function=function,
            signature=signature,
            quantities=tuple(known[name] for name in signature.asks),
            kind=mark.facts["kind"],
            class_specific=mark.facts["class_specific"],
            traceable=mark.facts["traceable"] and all(known[name].traceable for name in signature.asks),
            paper=mark.facts["paper"],
        )

    @property
    def has_layer(self) -> bool:
        """Whether the method explains a target layer; without one it explains the model as a whole."""
        return any(quantity.layer for quantity in self.quantities)

    @property
    def single_pass(self) -> bool:
        """Whether one forward pass, with the gradient of its head, is all that the method needs.

        What is differentiated where an observer looks may lie far in front of the target layer.
        """
        return not any(quantity.reruns or (quantity.graph and quantity.observer) for quantity in self.quantities)

    def compute(self, this: Pass, options: Mapping[str, Any], *, eigen_smooth: bool = False) -> Result:
        """The method's result for one layer and one target: a signed map [B, h, w] for methods of kind ``map``.

        With `eigen_smooth` the channels of a map [B, K, h, w] are joined by their first principal component.

        Raises:
            CamkitError: the function failed, returned something else than its kind says, or has no channels to smooth.
        """
        this.scored.notes.clear()
        given = [this.value(quantity) for quantity in self.quantities]
        with blaming(f"the method '{self.name}'"):
            result = self.function(*given, **options)
        batch = this.scored.scores.shape[0]
        allowed = (3, 4) if self.kind == "map" else (4,)
        if not isinstance(result, Tensor) or result.ndim not in allowed or result.shape[0] != batch:
            raise CamkitError(
                f"The method '{self.name}' returned {in_words(result)}, but a {self.kind} method returns a tensor "
                f"{_SHAPES[self.kind]} with B = {batch}."
            )
        notes = tuple(this.scored.notes)
        if eigen_smooth:
            return Result(self._smoothed(result), notes)
        return Result(result.sum(dim=1) if self.kind == "map" and result.ndim == 4 else result, notes)

    def _smoothed(self, result: Tensor) -> Tensor:
        if self.kind != "map" or result.ndim != 4:
            raise CamkitError(
                f"The method '{self.name}' does not weigh channels one by one, so eigen smoothing has nothing to act "
                f"on; leave it out."
            )
        return principal_component(result, centred=True)[0]


def as_method(given: str | Callable[..., Any]) -> Method:
    """A method by its name, or of a function marked with `plugin.method` that no plugin has registered.

    Raises:
        CamkitError: the name is not known, or the function is not marked as one method.
    """
    from camkit.registry import item

    found: Method = item("method", given, "NAME, paper=...")
    return found
