# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Reason: transformers' models and tokenizers are untyped.
"""A model as everything above `models/` sees it."""

import gc
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechsafety.core.config import CPU_PASS_TOKENS
from mechsafety.core.errors import HookError
from mechsafety.core.sites import ModelDims
from mechsafety.models.anatomy import anatomy
from mechsafety.models.generating import Generated, generate_greedily
from mechsafety.models.identity import identity
from mechsafety.models.prefix import Prefix, shared_length, without_first
from mechsafety.models.probe_report import ProbeReport
from mechsafety.models.spec import ModelSpec
from mechsafety.models.tails import head_residual, last_token_only, run_tail
from mechsafety.models.tokens import TokenBatch, TokenizedPrompts, pad
from mechsafety.models.wiring import Arrived, Wiring

Keep = Literal["last", "all"]


class Model:
    """A Hugging Face model with its tokenizer, its sites and what is installed at them.

    Made by `open_model`. The Hugging Face model stays as it was loaded; TransformerLens wraps a
    twin that shares its parameters, made when heads, neurons or probes first need it.
    """

    def __init__(
        self, hf: nn.Module, tokenizer: Any, spec: ModelSpec | None, most_tokens: int | None = None
    ) -> None:
        self.hf = hf
        """The clean model. Edits of residual sites are in force on it; use `forward` for all."""
        self.tokenizer = tokenizer
        """The Hugging Face tokenizer, or None for a model that was given without one."""
        self.spec = spec
        """What was asked for; None for a model that was given in memory."""
        self.dims: ModelDims = anatomy(hf).dims
        """Sizes that sites and directions must fit."""
        self.probes: ProbeReport | None = None
        """What the probes found when the model was opened; None where they were not run."""
        self.wiring = Wiring(hf)
        """What is installed at the moment (`intervene`, `reading`)."""
        self._most_tokens = most_tokens
        self._prefix_agrees: dict[tuple[int, ...], bool] = {}

    @property
    def device(self) -> torch.device:
        """Where input goes: the device of the first parameter."""
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the first floating-point parameter."""
        return next(p.dtype for p in self.hf.parameters() if p.is_floating_point())

    def pass_tokens(self, batch_tokens: int) -> int:
        """Most padded tokens that one forward pass without KV cache should have, of those allowed.

        What the model was opened with; without it, `CPU_PASS_TOKENS` on a CPU. Generation gains
        from larger batches.
        """
        if self._most_tokens is not None:
            return min(batch_tokens, self._most_tokens)
        return min(batch_tokens, CPU_PASS_TOKENS) if self.device.type == "cpu" else batch_tokens

    def run(
        self, batch: TokenBatch, logits_to_keep: int = 0, after: Prefix | None = None
    ) -> Float[Tensor, "batch kept vocab"] | None:
        """One forward pass, under everything that is installed.

        Returns the logits of the last `logits_to_keep` columns (0: of all), or None where a
        read ended the pass before them. The caller decides on gradients.

        Args:
            batch: Padded on either side; with `after`, prompts without the prefix.
            logits_to_keep: Last columns that are unembedded.
            after: Tokens before those of the batch, from `run_prefix` under the same edits.
        """
        there = batch.to(self.device)
        alone = {
            "attention_mask": there.attention_mask,
            "position_ids": there.position_ids,
            "use_cache": False,
        }
        try:
            return self.wiring.runner(
                input_ids=there.ids,
                logits_to_keep=logits_to_keep,
                **(alone if after is None else after.before(there)),
            ).logits
        except Arrived:
            return None

    def run_prefix(self, ids: Sequence[int]) -> Prefix:
        """Compute tokens that all prompts begin with, once, under everything that is installed."""
        row = torch.tensor([list(ids)], device=self.device)
        out = self.wiring.runner(
            input_ids=row,
            attention_mask=torch.ones_like(row),
            position_ids=torch.arange(row.shape[1], device=self.device)[None],
            use_cache=True,
            logits_to_keep=1,
        )
        return Prefix(row.shape[1], out.past_key_values)

    def shared_length(self, prompts: TokenizedPrompts) -> int:
        """First tokens of all prompts that `run_prefix` may compute for them: 0 for none.

        None where it saves too little, or where this model does not give the same logits so: a
        sliding window counts the padding between prefix and prompt. Tried once on the longest and
        the shortest prompt, and then remembered.
        """
        length = shared_length(prompts)
        if not length:
            return 0
        by_length = sorted(range(len(prompts)), key=lambda row: len(prompts.ids[row]))
        ends = prompts.select([by_length[-1], by_length[0]])
        key = (length, *map(len, ends.ids))
        if key not in self._prefix_agrees:
            whole, rest = (
                pad(p.ids, [0, 1], p.pad_id, "left") for p in (ends, without_first(ends, length))
            )
            with torch.inference_mode():
                expected = self.forward(whole).float()
                found = self.forward(rest, after=self.run_prefix(ends.ids[0][:length])).float()
            tolerance = 64 * torch.finfo(self.dtype).eps * expected.abs().max()
            self._prefix_agrees[key] = bool((found - expected).abs().max() <= tolerance)
        return length if self._prefix_agrees[key] else 0

    def _logits(self, batch: TokenBatch, after: Prefix | None, logits_to_keep: int) -> Tensor:
        with self._narrowed(logits_to_keep):
            logits = self.run(batch, logits_to_keep, after)
        if logits is None:
            raise HookError(
                "computing logits: a read that ends the forward pass early is installed. Leave "
                "`reading(..., stop=True)` first, or read without `stop`."
            )
        return logits

    def forward(
        self, batch: TokenBatch, keep: Keep = "last", after: Prefix | None = None
    ) -> Float[Tensor, "batch vocab"] | Float[Tensor, "batch pos vocab"]:
        """Logits under everything that is installed, on the model's device.

        Args:
            batch: Padded on either side.
            keep: `last`: of each prompt's last token, and nothing else is unembedded where
                padding is on the left. `all`: of every column, padding included.
            after: As for `run`.
        """
        return _kept(batch, keep, partial(self._logits, batch, after))

    def _narrowed(self, logits_to_keep: int) -> AbstractContextManager[None]:
        alone = logits_to_keep == 1 and self.wiring.backend == "torch"
        if not alone or torch.is_grad_enabled() or self.wiring.watches_last_block():
            return nullcontext()
        return last_token_only(self.hf)

    def head(self, batch: TokenBatch, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """`resid_pre` of `layer`, before the edits of that site; blocks from there do not run."""
        there = batch.to(self.device)
        return head_residual(
            self.wiring.runner,
            layer=layer,
            input_ids=there.ids,
            attention_mask=there.attention_mask,
            position_ids=there.position_ids,
        )

    def tail(
        self,
        residual: Float[Tensor, "batch pos d_model"],
        batch: TokenBatch,
        layer: int,
        keep: Keep = "last",
    ) -> Float[Tensor, "batch vocab"] | Float[Tensor, "batch pos vocab"]:
        """Logits that follow from `residual` at `resid_pre` of `layer`; blocks below do not run.

        `tail(head(batch, layer), batch, layer)` equals `forward(batch)`, edits included.
        """
        there = batch.to(self.device)

        def logits(logits_to_keep: int) -> Tensor:
            with self._narrowed(logits_to_keep if layer < self.dims.n_layers else 0):
                return run_tail(
                    self.wiring.runner,
                    residual,
                    layer=layer,
                    input_ids=there.ids,
                    attention_mask=there.attention_mask,
                    position_ids=there.position_ids,
                    logits_to_keep=logits_to_keep,
                )

        return _kept(batch, keep, logits)

    def generate(
        self, prompts: TokenizedPrompts, max_new_tokens: int, batch_tokens: int
    ) -> Generated:
        """Greedy answers under everything that is installed, in the prompts' order."""
        return generate_greedily(
            self.wiring.runner, self.tokenizer, prompts, max_new_tokens, batch_tokens
        )

    def identity(self) -> dict[str, str]:
        """What this model is, for records: hashes of weights, tokenizer and template, and more."""
        return identity(self.hf, self.tokenizer, self.spec)

    def close(self) -> None:
        """Let go of the weights, so that the next model fits; the object is dead afterwards."""
        on_gpu = self.device.type == "cuda"
        del self.hf, self.tokenizer, self.wiring
        # The modules of a bridged twin refer to each other, so that counting frees nothing.
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


def _kept(batch: TokenBatch, keep: Keep, logits: Callable[[int], Tensor]) -> Tensor:
    """All logits, or those of each row's last token: cheaply, where that is the last column."""
    if keep == "all":
        return logits(0)
    ends = batch.offsets + batch.attention_mask.sum(-1) - 1
    if bool((ends == batch.ids.shape[1] - 1).all()):
        return logits(1)[:, -1]
    everything = logits(0)
    return everything[torch.arange(len(ends)), ends.to(everything.device)]
