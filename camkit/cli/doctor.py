"""``camkit doctor``: layer by layer, what a map would be made of there, and why it would be blank."""

from typing import Annotated

import typer

from camkit.cli import printing
from camkit.cli.options import ModelOptions, with_model


@with_model()
def doctor(
    options: ModelOptions,
    layer: Annotated[str | None, typer.Option(help="The target layer; by default the adapter's.")] = None,
    image: Annotated[str | None, typer.Option(help="An image to run; by default noise.")] = None,
) -> None:
    """Show layer by layer why a map would be blank.

    Each layer's output shape, its layout, the share of positions that see the gradient, and whether it is fit for a
    map; then the verdict on the target layer.
    """
    from camkit.cli.walking import chosen_layer, example_images
    from camkit.doctor import render_doctor
    from camkit.walk import walk

    explainer, loaded = options.explainer(layer)
    images = example_images(explainer, loaded, image)
    chosen = chosen_layer(explainer, images)
    printing.console().print(render_doctor(walk(explainer.module, images, gradients=True), chosen))
