"""A model that is to be edited, and what it does unedited: what all its cells share."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechsafety.core.errors import SelfCheckError
from mechsafety.core.sites import ResidualSite
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.prompts import PromptPairs, PromptSet
from mechsafety.effects.ablation import addition
from mechsafety.effects.answers import Answers, answer
from mechsafety.effects.scores import Halfway, first_token_logits, run_halfway
from mechsafety.judges.phrases import PhraseJudge
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenizedPrompts, TokenUse, tokenize


@dataclass(frozen=True)
class Side:
    """One class of prompts in the target: text, tokens, and what the unedited model does."""

    prompts: PromptSet
    tokens: TokenizedPrompts
    logits: Float[Tensor, "prompt vocab"]
    """First-token logits of the unedited model."""
    answers: Answers
    """Answers of the unedited model."""
    halfway: Mapping[int, Halfway]
    """The prompts up to each layer that directions are read at: affine edits and additions change
    nothing below."""


@dataclass(frozen=True)
class Target:
    """The arm that is edited, with all that its cells share."""

    model: Model
    harmful: Side
    harmless: Side
    harmless_means: Mapping[ResidualSite, Float[Tensor, " d_model"]]
    """Mean harmless activation at each block input, from the fit split of this model."""
    harmless_rows: Mapping[ResidualSite, Float[Tensor, "row d_model"]]
    """Harmless activations at the sources' sites, from the fit split: where controls come from."""
    refusal_ids: Int[Tensor, " n_refusal"]
    """Empty where the model refuses nothing."""
    judge: PhraseJudge
    max_new_tokens: int
    batch_tokens: int

    def token_use(self, what: str) -> dict[str, TokenUse]:
        """What both sides became for the model, for the record: `what/harmful`, `what/harmless`."""
        passes = self.model.pass_tokens(self.batch_tokens)
        sides = {"harmful": self.harmful, "harmless": self.harmless}
        return {f"{what}/{name}": side.tokens.use(passes) for name, side in sides.items()}


def observed_target(
    model: Model,
    pairs: PromptPairs,
    chat: ChatFormat,
    judge: PhraseJudge,
    *,
    harmless_rows: Mapping[ResidualSite, Float[Tensor, "row d_model"]],
    refusal_ids: Sequence[int],
    layers: Collection[int],
    max_new_tokens: int,
    batch_tokens: int,
) -> Target:
    """Ask the unedited model all prompts and keep what its cells will be compared with.

    Args:
        pairs: Held-out harmful and harmless prompts.
        harmless_rows: Harmless activations of this model at every block input, from the fit split.
        refusal_ids: Tokens that open a refusal in this model; none where it refuses nothing.
        layers: Where directions are read that will be ablated or added.
        batch_tokens: Most padded tokens of one pass.
    """
    harmful, harmless = (
        _observed(model, prompts, chat, judge, max_new_tokens, batch_tokens, layers)
        for prompts in pairs.sets
    )
    return Target(
        model=model,
        harmful=harmful,
        harmless=harmless,
        harmless_means={
            site: rows.double().mean(0).float() for site, rows in harmless_rows.items()
        },
        harmless_rows=harmless_rows,
        refusal_ids=torch.tensor(refusal_ids, dtype=torch.long),
        judge=judge,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
    )


def _observed(
    model: Model,
    prompts: PromptSet,
    chat: ChatFormat,
    judge: PhraseJudge,
    max_new_tokens: int,
    batch_tokens: int,
    layers: Collection[int],
) -> Side:
    tokens = tokenize(model, prompts.prompts, chat)
    return Side(
        prompts=prompts,
        tokens=tokens,
        logits=first_token_logits(model, tokens, batch_tokens),
        answers=answer(model, tokens, judge, max_new_tokens, batch_tokens),
        halfway=run_halfway(model, tokens, layers, batch_tokens),
    )


def check_zero_strength(target: Target, site: ResidualSite) -> None:
    """Adding 0 × a vector must give the baseline bit for bit.

    Raises:
        SelfCheckError: It does not, so some hook changes what it should not.
    """
    nothing = addition(site, torch.ones(target.model.dims.d_model), coefficient=0.0)
    logits = first_token_logits(
        target.model, target.harmful.tokens, target.batch_tokens, edits=nothing
    )
    if not torch.equal(logits, target.harmful.logits):
        off = (logits - target.harmful.logits).abs().max().item()
        raise SelfCheckError(
            f"zero-strength control at {site}: the logits differ from the baseline by {off:.3g}, "
            "and must be equal bit for bit. Some hook other than the control changes the model."
        )
