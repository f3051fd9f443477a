"""A method as the registry knows it: a pure function of quantities, with its options."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from camkit import plugin
from camkit.errors import CamkitError
from camkit.injection import Signature, in_words, parse_signature
from camkit.quantities import Pass, Quantity

if TYPE_CHECKING:
    from camkit.registry import Registry

Kind = Literal["map", "pixels", "concepts"]
_SHAPES = {"map": "[B, h, w] or [B, K, h, w]", "pixels": "[B, C, H, W]", "concepts": "[B, k, h, w]"}


@dataclass(frozen=True)
class Method:
    """A registered CAM method."""

    name: str
    function: Callable[..., Any]
    signature: Signature
    quantities: tuple[Quantity, ...]
    kind: Kind
    class_specific: bool
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
            paper=mark.facts["paper"],
        )

    @property
    def traceable(self) -> bool:
        """Whether every quantity that the method asks for can appear in an exported graph."""
        return all(quantity.traceable for quantity in self.quantities)

    @property
    def needs_graph(self) -> bool:
        """Whether the method needs the autograd graph of the head."""
        return any(quantity.graph for quantity in self.quantities)

    def compute(self, this: Pass, options: Mapping[str, Any]) -> Tensor:
        """The method's result for one layer and one target: a signed map [B, h, w] for methods of kind ``map``.

        Raises:
            CamkitError: the function failed, or returned something else than its kind says.
        """
        given = [this.value(quantity) for quantity in self.quantities]
        try:
            result = self.function(*given, **options)
        except CamkitError:
            raise
        # whatever a plugin's function stumbles over is its own; the cause stays attached for its author
        except Exception as error:
            raise CamkitError(f"The method '{self.name}' failed: {type(error).__name__}: {error}") from error
        batch = this.scored.scores.shape[0]
        allowed = (3, 4) if self.kind == "map" else (4,)
        if not isinstance(result, Tensor) or result.ndim not in allowed or result.shape[0] != batch:
            raise CamkitError(
                f"The method '{self.name}' returned {in_words(result)}, but a {self.kind} method returns a tensor "
                f"{_SHAPES[self.kind]} with B = {batch}."
            )
        return result.sum(dim=1) if self.kind == "map" and result.ndim == 4 else result
