"""Whether a model was left as it was."""

from typing import Any

from torch import nn


def state(module: nn.Module) -> dict[str, Any]:
    """Everything about a model that an explanation must leave as it was, in a form that can be compared."""
    found: dict[str, Any] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        found[f"module {name}"] = (
            id(child),
            child.training,
            getattr(child, "inplace", None),
            [tuple(getattr(child, hook)) for hook in hooks],
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        gradient = tensor.grad
        found[f"tensor {name}"] = (
            id(tensor),
            tensor.dtype,
            str(tensor.device),
            tensor.requires_grad,
            tensor._version if not tensor.is_inference() else None,
            None if gradient is None else (id(gradient), gradient._version),
        )
    return found
