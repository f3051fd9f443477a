"""``camkit summary``: layers, output shapes and parameters, as the usual summary tables print them."""

from rich.console import Console

from camkit.cli.options import ModelOptions, with_model


@with_model()
def summary(options: ModelOptions) -> None:
    """Show each layer's output shape and parameters, running totals, and sizes in MB."""
    from camkit.cli.walking import example_images
    from camkit.summary import render_summary
    from camkit.walk import walk

    explainer, loaded = options.explainer()
    Console().print(render_summary(walk(explainer.module, example_images(explainer, loaded, None))))
