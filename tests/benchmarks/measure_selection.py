"""Direction selection against the published procedure, as one line of JSON.

The rival is the procedure as published (arXiv:2406.11717): for every candidate three full passes
with hooks on every block's input, attention and MLP (addition: on one block), prompts in input
order, batches of 32, left padding, the logits of every token, which become float64 before the last
is taken (`pipeline/submodules/select_direction.py` of andyrdt/refusal_direction, 0b9c8bc). Only the
position ids are ours, without which padding would move its numbers. Both sides run in one process,
their baselines included; CPU time is taken, so that other work on the machine counts less.

    python -m tests.benchmarks.measure_selection [--positions 1] [--prompts 16] [--rounds 3]
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mechsafety.core.sites import ResidualSite
from mechsafety.effects.selection import (
    Candidates,
    CandidateScores,
    Mode,
    Selection,
    Trial,
    make_trial,
    select_direction,
)
from mechsafety.effects.selection_rule import SelectionFilters, choose, kept
from mechsafety.metrics.kl import kl_divergence
from mechsafety.metrics.refusal_score import refusal_score
from mechsafety.models.model import Model
from mechsafety.models.tokens import TokenizedPrompts, from_ids

D_MODEL, N_LAYERS, VOCAB = 512, 12, 32_000
SHORTEST, LONGEST = 8, 64
NAIVE_BATCH = 32
BATCH_TOKENS = 16_384
REFUSAL_IDS = (5, 77)


Hook = tuple[nn.Module, str, Callable]
"""Module, `input` or `output`, and what runs there."""


@dataclass(frozen=True)
class Naive:
    """The published procedure: hooks on the Hugging Face model, one candidate after the other."""

    hf: nn.Module
    layers: Sequence[nn.Module]
    trial: Trial

    def logits(
        self, prompts: TokenizedPrompts, hooks: Sequence[Hook], wide: bool = False
    ) -> Tensor:
        """Of the last token; `wide` in float64, all tokens being converted first, as published."""
        handles = [
            module.register_forward_pre_hook(hook)
            if kind == "input"
            else module.register_forward_hook(hook)
            for module, kind, hook in hooks
        ]
        rows: list[Tensor] = []
        for start in range(0, len(prompts), NAIVE_BATCH):
            ids = prompts.ids[start : start + NAIVE_BATCH]
            width = max(map(len, ids))
            padded = torch.zeros(len(ids), width, dtype=torch.long)
            mask = torch.zeros_like(padded)
            for row, one in enumerate(ids):
                padded[row, width - len(one) :] = torch.tensor(one)
                mask[row, width - len(one) :] = 1
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            out = self.hf(input_ids=padded, attention_mask=mask, position_ids=positions)
            everything = out.logits.to(torch.float64) if wide else out.logits
            rows.append(everything[:, -1])
        for handle in handles:
            handle.remove()
        return torch.cat(rows)

    def ablation(self, vector: Tensor) -> list[Hook]:
        r = vector / (vector.norm() + 1e-8)

        def remove(x: Tensor) -> Tensor:
            x -= (x @ r).unsqueeze(-1) * r
            return x

        def on_input(_module: nn.Module, args: tuple) -> tuple:
            return (remove(args[0]), *args[1:])

        def on_output(_module: nn.Module, _args: tuple, out: object) -> object:
            return (remove(out[0]), *out[1:]) if isinstance(out, tuple) else remove(out)

        return [
            hook
            for layer in self.layers
            for hook in (
                (layer, "input", on_input),
                (layer.self_attn, "output", on_output),
                (layer.mlp, "output", on_output),
            )
        ]

    def addition(self, layer: int, vector: Tensor) -> list[Hook]:
        def on_input(_module: nn.Module, args: tuple) -> tuple:
            return (args[0] + vector, *args[1:])

        return [(self.layers[layer], "input", on_input)]

    @torch.no_grad()
    def scores(self, candidates: Candidates) -> CandidateScores:
        trial, shape = self.trial, candidates.vectors.shape[:2]
        bypass = torch.empty(len(trial.harmful), *shape, dtype=torch.float64)
        induce, kl = (torch.empty(len(trial.harmless), *shape, dtype=torch.float64) for _ in "ab")
        for side in (trial.harmful, trial.harmless):
            refusal_score(self.logits(side, [], wide=True), trial.refusal_ids)
        clean = self.logits(trial.harmless, [])
        for p in range(shape[0]):
            for layer in range(shape[1]):
                vector = candidates.at(p, layer)
                ablate = self.ablation(vector)
                bypass[:, p, layer] = refusal_score(
                    self.logits(trial.harmful, ablate, wide=True), trial.refusal_ids
                )
                kl[:, p, layer] = kl_divergence(clean, self.logits(trial.harmless, ablate))
                induce[:, p, layer] = refusal_score(
                    self.logits(trial.harmless, self.addition(layer, vector), wide=True),
                    trial.refusal_ids,
                )
        return CandidateScores(bypass, induce, kl)


def random_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=11 * D_MODEL // 4,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=8,
        eos_token_id=None,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config).eval()


def random_prompts(n: int, seed: int) -> TokenizedPrompts:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (n,), generator=generator).tolist()
    return from_ids([torch.randint(3, VOCAB, (k,), generator=generator).tolist() for k in lengths])


def lenient(scores: CandidateScores, share: float) -> SelectionFilters:
    """Filters that keep the given share of a random model's candidates by either score.

    The published ones keep 10 to 50 % by either on chat models, and nothing on random weights.
    """
    return SelectionFilters(
        prune_layers=0.8,
        induce_threshold=float(scores.induce.mean(0).quantile(1 - share)),
        kl_threshold=float(scores.kl.mean(0).quantile(share)),
    )


def best(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            times[name].append(time.process_time() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kept", type=float, default=0.4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    hf = random_llama()
    model = Model(hf, None, None)
    harmful, harmless = random_prompts(args.prompts, 1), random_prompts(args.prompts, 2)
    trial = make_trial(model, harmful, harmless, REFUSAL_IDS, BATCH_TOKENS)
    generator = torch.Generator().manual_seed(3)
    # As long as a mean difference is beside the stream: about its own norm at the middle layers.
    vectors = torch.randn(args.positions, N_LAYERS, D_MODEL, generator=generator)
    candidates = Candidates(
        tuple(f"eoi[{p}]" for p in range(-args.positions, 0)),
        tuple(ResidualSite(layer, "resid_pre") for layer in range(N_LAYERS)),
        vectors,
    )
    naive = Naive(hf, list(hf.model.layers), trial)
    rival = naive.scores(candidates)
    filters = lenient(rival, args.kept)

    def ours(mode: Mode) -> Selection:
        fresh = make_trial(model, harmful, harmless, REFUSAL_IDS, BATCH_TOKENS)
        return select_direction(model, fresh, candidates, filters, mode)

    full, fast = ours("exhaustive"), ours("winner")
    means = [getattr(rival, name).mean(0) for name in ("induce", "kl", "bypass")]
    allowed = kept(filters, N_LAYERS, *means)
    off = {
        name: float((getattr(rival, name) - getattr(full.scores, name)).abs().max())
        for name in ("bypass", "induce", "kl")
    }
    times = best(
        {
            "naive": lambda: naive.scores(candidates),
            "exhaustive": partial(ours, "exhaustive"),
            "winner": partial(ours, "winner"),
        },
        args.rounds,
    )
    took = {name: min(found) for name, found in times.items()}
    print(
        json.dumps(
            {
                "exhaustive_speedup": took["naive"] / took["exhaustive"],
                "winner_speedup": took["naive"] / took["winner"],
                "same_winner": full.chosen
                == fast.chosen
                == tuple(choose(means[2], allowed).tolist()),
                "chosen": full.chosen,
                "kept": int(allowed.sum()),
                "candidates": allowed.numel(),
                "off": off,
                "seconds": times,
            }
        )
    )


if __name__ == "__main__":
    main()
