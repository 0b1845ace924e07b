"""The bag-of-tokens baseline: what words alone, without order or model, say about the class.

Whatever a direction separates no better than this may be reading words. It cannot see what only a
combination of words means: an exclusive or of two tokens gives every weighting of them the same
AUC, 0.5.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechsafety.core.errors import SampleError
from mechsafety.linalg.typed import linalg

PENALTIES: Final = tuple(10.0 ** (power / 2) for power in range(-8, 9))
"""Candidates for the penalty, in units of the mean variance of a prompt's counts: 1e-4 to 1e4."""


def lexical_scores(
    fit_ids: Sequence[Sequence[int]],
    fit_harmful: Bool[Tensor, " n_fit"],
    held_ids: Sequence[Sequence[int]],
    fit_groups: Sequence[Hashable] | None = None,
) -> Float[Tensor, " n_held"]:
    r"""Ridge regression of ±1 labels on token counts; the scores of the held-out prompts.

    $\min_{w, b} \lVert y - X w - b \rVert^2 + \lambda \lVert w \rVert^2$ over the tokens of the
    fit prompts, others being ignored, with λ from `PENALTIES` by the squared error of prompts
    left out (`left_out_errors`). Positive is harmful. Prompts with the same counts score the
    same to the last bit. Where all fit prompts have the same counts, all scores are equal.

    Pass the AUC of these on the *same* split as a direction's. Holds `16 · n_fit · tokens` bytes.

    Source: the ridge of Hoerl & Kennard 1970, doi:10.1080/00401706.1970.10488634.

    Args:
        fit_ids: Token ids of each prompt's instruction; those of a template say nothing.
        fit_harmful: Which of them are harmful.
        held_ids: Token ids of the prompts to score.
        fit_groups: Prompts left out together, such as twins: a twin that stays would tell on the
            one left out, by its opposite label. Each on its own if not given.

    Raises:
        SampleError: One label or group per fit prompt is not what arrived, or one class is empty.
    """
    n = len(fit_ids)
    groups = list(range(n)) if fit_groups is None else list(fit_groups)
    n_harmful = int(fit_harmful.sum())
    if not len(fit_harmful) == len(groups) == n or not 0 < n_harmful < n or len(set(groups)) < 2:
        raise SampleError(
            f"lexical baseline: {n} fit prompts in {len(set(groups))} groups (of {len(groups)}) "
            f"with {len(fit_harmful)} labels, {n_harmful} of them harmful; expected one label and "
            "one group each, both classes, and at least two groups."
        )
    column = {token: i for i, token in enumerate(sorted({t for ids in fit_ids for t in ids}))}
    counts = torch.zeros(n, len(column), dtype=torch.float64)
    for row, ids in enumerate(fit_ids):
        for token, count in Counter(ids).items():
            counts[row, column[token]] = count
    target = 2 * fit_harmful.cpu().double() - 1
    center = counts.mean(0)
    counts = counts - center
    unit = float(counts.square().sum()) / n
    if not unit:
        return target.mean().repeat(len(held_ids))
    penalties = [unit * penalty for penalty in PENALTIES]
    errors = [float(e.square().sum()) for e in left_out_errors(counts, target, groups, penalties)]
    penalty = penalties[errors.index(min(errors))]
    values, vectors = linalg.eigh(counts @ counts.T)
    shrunk = (vectors.T @ (target - target.mean())) / (values.clamp_min(0) + penalty)
    weights = counts.T @ (vectors @ shrunk)
    base = target.mean() - center @ weights
    # In the order of the tokens, so that equal bags round alike and tie.
    bags = [sorted(column[token] for token in ids if token in column) for ids in held_ids]
    return torch.stack([base + weights[bag].sum() for bag in bags]) if bags else base.new_empty(0)


def left_out_errors(
    counts: Float[Tensor, "row d"],
    target: Float[Tensor, " row"],
    groups: Sequence[Hashable],
    penalties: Sequence[float],
) -> list[Float[Tensor, " row"]]:
    r"""For each penalty, how far each row is from the ridge fit without its group.

    In closed form: $(I - H_{gg})^{-1} (y - \hat y)_g$ with H the hat matrix of the fit with all
    rows, intercept included, so that one eigendecomposition serves every penalty and group.

    Args:
        counts: Features.
        target: What is regressed on them.
        groups: Of each row.
        penalties: λ above 0.
    """
    n = len(counts)
    centered = counts.double() - counts.double().mean(0)
    values, vectors = linalg.eigh(centered @ centered.T)
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    found: list[Tensor] = []
    for penalty in penalties:
        kept = values.clamp_min(0) / (values.clamp_min(0) + penalty)
        hat = (vectors * kept) @ vectors.T + 1 / n
        residual = target.double() - hat @ target.double()
        errors = torch.empty_like(residual)
        for rows in members.values():
            block = torch.eye(len(rows), dtype=hat.dtype, device=hat.device) - hat[rows][:, rows]
            lower, _ = linalg.cholesky_ex(block)
            errors[rows] = torch.cholesky_solve(residual[rows, None], lower)[:, 0]
        found.append(errors)
    return found
