"""ROAD: remove and debias (Rong et al. 2022, arXiv:2202.00449)."""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt, MinLen
from torch import Tensor

from camkit import plugin
from camkit.metrics import Answers, Score, is_flat, judged
from camkit_metrics._imputation import imputed
from camkit_metrics._removal import ranks

Shares = Annotated[tuple[Annotated[float, Gt(0), Lt(1)], ...], MinLen(1)]
TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def after_removal(
    order: Tensor, images: Tensor, answers: Answers, shares: Shares, noise: float, seed: int, score: Score
) -> Tensor:
    """The mean answer [B] after the first pixels of an order [B, H, W] from 0 are imputed, over the shares of them."""
    total = order[0].numel()
    speckle = noise * torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)

    def make(place: int) -> Tensor:
        gone = order < round(shares[place] * total)
        return imputed(images, gone) + speckle * gone.unsqueeze(1)

    return answers.map(make, len(shares), score=score).mean(dim=1)


@plugin.metric("road_morf", paper="arXiv:2202.00449", higher_is_better=False, unit="share")
def road_morf(
    heatmaps: Tensor,
    images: Tensor,
    answers: Answers,
    *,
    shares: Shares = TENTHS,
    noise: Annotated[float, Ge(0)] = 0.01,
    seed: int = 0,
    score: Score = "probability",
) -> Tensor:
    """ROAD, most relevant first: the confidence after the heatmap's highest pixels are imputed, averaged over shares.

    The first ``share`` of the pixels are replaced by noisy linear imputation: each is the weighted mean of its
    neighbours (direct ones 1/6, diagonal ones 1/12), all of them solved for at once, plus normal noise of the size
    `noise`, in normalised values. Definition ``road-morf/1``.

    The paper follows the accuracy, which is `score` ``correct``. Equal values go row by row. The noise is the same for
    all samples. NaN: a flat heatmap.
    """
    values = after_removal(ranks(heatmaps), images, answers, shares, noise, seed, score)
    return judged(values, ~is_flat(heatmaps))


@plugin.metric("road_lerf", paper="arXiv:2202.00449", higher_is_better=True, unit="share")
def road_lerf(
    heatmaps: Tensor,
    images: Tensor,
    answers: Answers,
    *,
    shares: Shares = TENTHS,
    noise: Annotated[float, Ge(0)] = 0.01,
    seed: int = 0,
    score: Score = "probability",
) -> Tensor:
    """ROAD, least relevant first: the confidence after the heatmap's lowest pixels are imputed, averaged over shares.

    As road_morf from the other end: here a good map keeps the confidence. Definition ``road-lerf/1``.

    Options, and what is NaN: as for road_morf.
    """
    values = after_removal(ranks(-heatmaps), images, answers, shares, noise, seed, score)
    return judged(values, ~is_flat(heatmaps))


@plugin.metric("road", paper="arXiv:2202.00449", higher_is_better=True, unit="share")
def road(
    heatmaps: Tensor,
    images: Tensor,
    answers: Answers,
    *,
    shares: Shares = TENTHS,
    noise: Annotated[float, Ge(0)] = 0.01,
    seed: int = 0,
    score: Score = "probability",
) -> Tensor:
    """ROAD, combined: half of what is kept by removing the least relevant pixels rather than the most relevant ones.

    (road_lerf - road_morf) / 2, from -1/2 to 1/2, as the package grad-cam combines them; 0 is a map that knows
    nothing. Definition ``road/1``.

    Options, and what is NaN: as for road_morf.
    """
    given = (heatmaps, images, answers)
    kept = road_lerf(*given, shares=shares, noise=noise, seed=seed, score=score)
    return (kept - road_morf(*given, shares=shares, noise=noise, seed=seed, score=score)) / 2
