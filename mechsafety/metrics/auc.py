"""Area under the ROC curve."""

# SciPy comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import torch
from jaxtyping import Float
from scipy.stats import mannwhitneyu
from torch import Tensor

from mechsafety.core.errors import SampleError


def auc(
    scores_positive: Float[Tensor, " n_positive"], scores_negative: Float[Tensor, " n_negative"]
) -> float:
    """Chance that a positive scores above a negative, ties counting half.

    The Mann-Whitney statistic over its maximum, by SciPy, in float64.

    Source: Mann & Whitney 1947, doi:10.1214/aoms/1177730491.

    Raises:
        SampleError: A class without scores, or a score that is not a number.
    """
    positive = scores_positive.detach().double().cpu()
    negative = scores_negative.detach().double().cpu()
    if not len(positive) or not len(negative):
        raise SampleError(
            f"auc: {len(positive)} positive and {len(negative)} negative scores; expected both. "
            "Without one class there is nothing to rank against."
        )
    if bool(torch.isnan(positive).any() | torch.isnan(negative).any()):
        raise SampleError("auc: a score is not a number, and NaN has no rank. Find its prompt.")
    statistic = mannwhitneyu(positive.numpy(), negative.numpy(), method="asymptotic").statistic
    return float(statistic) / (len(positive) * len(negative))
