"""Options that several commands share, declared once."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from camkit.errors import CamkitError

if TYPE_CHECKING:
    from camkit.explain import Explainer
    from camkit.models import LoadedModel

PANEL = "Model"


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is built; a command that takes these is decorated with `with_model`."""

    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="SPEC",
            rich_help_panel=PANEL,
            help="torchvision:NAME, timm:NAME, transformers:PATH-OR-NAME, demo:NAME or python:package.module:factory.",
        ),
    ] = ""
    weights: Annotated[
        str,
        typer.Option(
            metavar="default|none|PATH", rich_help_panel=PANEL, help="Pretrained weights, random ones, or a checkpoint."
        ),
    ] = "default"
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=PANEL, help="Class names: one per line, or JSON.")
    ] = None
    mean: Annotated[
        str | None, typer.Option(metavar="M,M,M", rich_help_panel=PANEL, help="Mean of each channel, in [0, 1].")
    ] = None
    std: Annotated[
        str | None, typer.Option(metavar="S,S,S", rich_help_panel=PANEL, help="Standard deviation of each channel.")
    ] = None
    size: Annotated[
        str | None, typer.Option(metavar="N|HxW", rich_help_panel=PANEL, help="Size of the model's input in pixels.")
    ] = None
    adapter: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=PANEL, help="An adapter file for this model.")
    ] = None
    device: Annotated[str, typer.Option(rich_help_panel=PANEL, help="cpu, cuda, cuda:1 …")] = "cpu"
    dtype: Annotated[str, typer.Option(rich_help_panel=PANEL, help="float32, float64, float16 or bfloat16.")] = (
        "float32"
    )

    def load(self) -> "LoadedModel":
        """Builds the model, in evaluation mode."""
        from camkit.models import load_model

        return load_model(
            self.model,
            weights=self.weights,
            labels=self.labels,
            mean=_numbers("--mean", self.mean),
            std=_numbers("--std", self.std),
            size=_size(self.size),
            device=self.device,
            dtype=self.dtype,
        )

    def explainer(self, layer: str | Sequence[str] | None = None) -> "tuple[Explainer, LoadedModel]":
        """The model, and an Explainer for it."""
        from camkit.explain import Explainer

        loaded = self.load()
        return Explainer(loaded, layer=layer, adapter=self.adapter), loaded


_SEVERAL = Annotated[
    str,
    typer.Option(
        "--models", "-m", metavar="SPEC,SPEC", rich_help_panel=PANEL, help="Models as source:name; all loaded alike."
    ),
]


def with_model(*, required: bool = True, several: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the model options: its first parameter receives a `ModelOptions`.

    With `several` the option is ``--models``, and `ModelOptions.model` holds them separated by commas.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(ModelOptions, include_extras=True)
        if several:
            hints["model"] = _SEVERAL
        names = [one.name for one in fields(ModelOptions)]
        shared = [
            inspect.Parameter(
                one.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if required and one.name == "model" else one.default,
                annotation=hints[one.name],
            )
            for one in fields(ModelOptions)
        ]
        own = list(inspect.signature(command).parameters.values())[1:]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            options = ModelOptions(**{name: given.pop(name) for name in names})
            command(options, **given)

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + shared
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        return run

    return decorate


def comma_separated(text: str | None) -> list[str]:
    """The parts of ``A,B``, each once, without empty ones."""
    return list(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def pairs(what: str, given: Sequence[str] | None) -> dict[str, Any]:
    """``name=value`` texts as a mapping; `what` is the option that they were given by."""
    from camkit.injection import parse_value

    found = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise CamkitError(f"{what} was '{text}'; name=value is expected.")
        found[name] = parse_value(value)
    return found


def parse_options(given: Sequence[str], methods: Sequence[str], others: Sequence[str] = ()) -> dict[str, Any]:
    """``method.option=value`` texts as a mapping for an Explainer; `others` may have options too."""
    from camkit.injection import parse_value

    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        method, dot, _ = key.rpartition(".")
        if not equals or not dot:
            raise CamkitError(
                f"The option '{text}' was not understood; write method.option=value, for example gradcam.name=1."
            )
        if method not in (*methods, *others):
            raise CamkitError(
                f"The option '{text}' is for the method '{method}', which was not asked for with --method; neither was "
                f"a target function or a fusion of that name."
            )
        found[key] = parse_value(value)
    return found


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CamkitError(
            f"{option} was '{text}'; numbers separated by commas are expected, one for each channel."
        ) from None


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise CamkitError(
            f"--size was '{text}'; a number of pixels such as 224, or height x width such as 224x320, is expected."
        )
    return int(parts[0]), int(parts[-1])
