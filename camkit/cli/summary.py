"""``camkit summary``: layers, output shapes and parameters, as the usual summary tables print them."""

from camkit.cli import printing
from camkit.cli.options import ModelOptions, with_model


@with_model()
def summary(options: ModelOptions) -> None:
    """Show layers, output shapes, parameters and sizes in MB."""
    from camkit.cli.walking import example_images
    from camkit.summary import render_summary
    from camkit.walk import walk

    explainer, loaded = options.explainer()
    printing.console().print(render_summary(walk(explainer.module, example_images(explainer, loaded, None))))
