"""``camkit serve``: an exported file behind HTTP.

Tensors go in and out by the Open Inference Protocol; an image goes in and an overlay or JSON comes out.
"""
