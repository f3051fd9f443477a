"""Export: one forward-plus-gradient graph as a file that needs no autograd, verified before it takes its name.

`camkit_export.session` runs such files and imports neither torch nor pluggy; `camkit_export.hooks` is the plugin.
"""
