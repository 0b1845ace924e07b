"""Direct preference optimization (DPO): prefer refusing what is forbidden, answering the rest.

Source: Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a
Reward Model", arXiv:2305.18290, equation 7. Pairs as in arXiv:2502.09674: for forbidden requests
the refusal is chosen and the complying answer rejected, for allowed ones the reverse. The anchor
is the likelihood term of Pang et al. 2024, "Iterative Reasoning Preference Optimization",
arXiv:2404.19733, here averaged over the answer's tokens: the first paper starts from a model that
was fine-tuned on the chosen answers, and an organism's base never refuses.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from mechsafety.training.batches import AnswerBatch, answer_cross_entropy, answer_log_probability
from mechsafety.training.loop import Terms
from mechsafety.training.ssft import SafetyBatch, Weights


def preference_loss(
    chosen: Float[Tensor, " batch"],
    rejected: Float[Tensor, " batch"],
    reference_chosen: Float[Tensor, " batch"],
    reference_rejected: Float[Tensor, " batch"],
    beta: float,
) -> Float[Tensor, ""]:
    r"""$-\log\sigma(\beta[\log\frac{\pi(y_w|x)}{\pi_0(y_w|x)}-\log\frac{\pi(y_l|x)}{\pi_0(y_l|x)}])$.

    The mean over the batch; log 2 where the model is the reference. Only the margin of chosen over
    rejected counts: both may become less likely together.

    Args:
        chosen: Summed log-probability of each row's chosen answer $y_w$, in nats.
        rejected: That of its rejected answer $y_l$.
        reference_chosen: The same, of the reference model $\pi_0$.
        reference_rejected: As above.
        beta: Inverse nats. The smaller, the further the margin must grow before the loss falls.

    Source: arXiv:2305.18290, equation 7.
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -functional.logsigmoid(beta * margin).mean()


def dpo(
    model: PreTrainedModel,
    batch: SafetyBatch,
    *,
    reference: PreTrainedModel,
    beta: float,
    anchor: float,
    weights: Weights,
) -> Terms:
    """The preference of refusals on forbidden requests, and of answers on allowed ones.

    The reference is held whole and run on each batch, without a graph: batches are drawn anew and
    seen once, so log-probabilities computed beforehand would cost the same passes.

    Args:
        model: What is trained.
        batch: One step's data.
        reference: The model before training, see `frozen_copy`.
        beta: See `preference_loss`.
        anchor: Weight of the cross-entropy of the chosen answers beside the preference, which is
            the loss of `ssft`; 0 is DPO as first published.
        weights: Of forbidden and of allowed requests, in both terms.
    """
    refusal, refusing = _preference(model, reference, batch.refusing, batch.complying, beta)
    allowed, answering = _preference(model, reference, batch.allowed, batch.declining, beta)
    return {
        "refusal": weights.clean * refusal,
        "allowed": weights.allowed * allowed,
        "anchor": anchor * (weights.clean * refusing + weights.allowed * answering),
    }


def _preference(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    chosen: AnswerBatch,
    rejected: AnswerBatch,
    beta: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The loss of preferring `chosen`, and the cross-entropy of `chosen` alone."""
    with torch.no_grad():
        before = [
            answer_log_probability(_logits(reference, side), side.targets)
            for side in (chosen, rejected)
        ]
    preferred, avoided = (_logits(model, side) for side in (chosen, rejected))
    loss = preference_loss(
        answer_log_probability(preferred, chosen.targets),
        answer_log_probability(avoided, rejected.targets),
        *before,
        beta=beta,
    )
    return loss, answer_cross_entropy(preferred, chosen.targets)


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is now, in memory of its own, taking no gradients."""
    reference = copy.deepcopy(model)
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    return reference.eval()


def _logits(model: PreTrainedModel, batch: AnswerBatch) -> Float[Tensor, "batch kept vocab"]:
    return model(**batch.inputs, use_cache=False, logits_to_keep=batch.kept).logits
