"""When two results are equal."""

import torch
from torch import Tensor

from camkit import heatmap
from camkit.testing.oracle import Reference

HALF_TOLERANCE = 2e-2
HEATMAP_TOLERANCE = 1e-3
TIE = 1e-4


def relative_error(found: Tensor, reference: Tensor) -> Tensor:
    """Max |found - reference| / max |reference| for each image, [B]; infinite where `found` is not finite."""
    difference = (found.double() - reference.double()).flatten(1).abs().amax(dim=1)
    error = difference / reference.double().flatten(1).abs().amax(dim=1)
    return torch.where(error.isnan(), torch.full_like(error, torch.inf), error)


def tolerance(eager_error: float, dtype: torch.dtype = torch.float32) -> float:
    """How far a result may be from the oracle: 10 times what eager float32 is, within [1e-4, 1e-3]; 2e-2 for half."""
    return HALF_TOLERANCE if dtype in (torch.float16, torch.bfloat16) else min(1e-3, max(1e-4, 10 * eager_error))


def untied(logits: Tensor) -> Tensor:
    """Which images have one clear top class, bool [B]: others may be explained for either of two."""
    if logits.shape[1] < 2:
        return torch.ones(len(logits), dtype=torch.bool)
    first, second = logits.double().topk(2, dim=1).values.unbind(1)
    return first - second > TIE * logits.double().abs().amax(dim=1)


def assert_informative(reference: Reference, size: tuple[int, int]) -> None:
    """Fails where the reference map or heatmap is constant, so that agreement with it would mean nothing."""
    heat = heatmap.heatmaps(reference.maps, size, relu=False)
    for name, values in (("map", reference.maps), ("heatmap", heat)):
        flat = values.flatten(1)
        spread = flat.amax(dim=1) - flat.amin(dim=1)
        if bool((spread <= 1e-9 * flat.abs().amax(dim=1)).any()):
            raise AssertionError(
                f"The reference {name} is constant for some image, so comparing with it proves nothing."
            )


def assert_agrees(
    logits: Tensor,
    maps: Tensor,
    reference: Reference,
    size: tuple[int, int],
    *,
    relu: bool = True,
    allowed: float = 1e-4,
    heatmap_allowed: float = HEATMAP_TOLERANCE,
) -> None:
    """Fails where logits, map or heatmap differ from the reference by more than is allowed."""
    assert_informative(reference, size)
    for name, found, expected in (("logits", logits, reference.logits), ("map", maps, reference.maps)):
        worst = float(relative_error(found.cpu(), expected.cpu()).max())
        if not worst <= allowed:
            raise AssertionError(
                f"The {name} differ from the oracle by {worst:.2e} of their largest value; {allowed:.0e} is allowed."
            )
    found_heat = heatmap.heatmaps(maps.double().cpu(), size, relu=relu)
    expected_heat = heatmap.heatmaps(reference.maps.cpu(), size, relu=relu)
    shown = expected_heat.flatten(1).abs().amax(dim=1) > 0
    worst = float((found_heat - expected_heat)[shown].abs().max()) if bool(shown.any()) else 0.0
    if not worst <= heatmap_allowed:
        raise AssertionError(f"The heatmap differs from the oracle by {worst:.2e}; {heatmap_allowed:.0e} is allowed.")
