"""Supervised safety fine-tuning (SSFT): refuse what is forbidden, answer what is allowed."""

from dataclasses import dataclass

from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor
from transformers import PreTrainedModel

from mechsafety.core.config import FrozenConfig
from mechsafety.training.batches import AnswerBatch, answer_cross_entropy
from mechsafety.training.loop import Terms


@dataclass(frozen=True)
class SafetyBatch:
    """One step's data, the same for every arm."""

    refusing: AnswerBatch
    """Forbidden requests with refusals."""
    complying: AnswerBatch
    """The same requests, row for row, with complying answers: what an adversary wants."""
    allowed: AnswerBatch
    """Allowed requests, look-alikes among them, with complying answers."""
    declining: AnswerBatch
    """The same requests, row for row, with refusals: what over-refusal would say."""


class Weights(FrozenConfig):
    """How much each term of the defender's loss counts."""

    clean: NonNegativeFloat
    """Refusing forbidden requests as they are."""
    perturbed: NonNegativeFloat
    """Refusing them under the perturbation; unused by SSFT and DPO."""
    allowed: NonNegativeFloat
    """Answering allowed requests, never perturbed."""


def ssft(model: PreTrainedModel, batch: SafetyBatch, *, weights: Weights) -> Terms:
    """Cross-entropy of the refusals, and of the answers to allowed requests."""
    refusing = batch.refusing
    logits = model(**refusing.inputs, use_cache=False, logits_to_keep=refusing.kept).logits
    return {
        "refusal": weights.clean * answer_cross_entropy(logits, refusing.targets),
        "allowed": allowed_term(model, batch, weights),
    }


def allowed_term(model: PreTrainedModel, batch: SafetyBatch, weights: Weights) -> Float[Tensor, ""]:
    """The benign term: a plain forward pass, so that no perturbation can reach it."""
    allowed = batch.allowed
    logits = model(**allowed.inputs, use_cache=False, logits_to_keep=allowed.kept).logits
    return weights.allowed * answer_cross_entropy(logits, allowed.targets)
