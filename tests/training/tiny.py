import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mechsafety.training.batches import Example, pad
from mechsafety.training.ssft import SafetyBatch

VOCAB, D_MODEL, N_LAYERS = 23, 12, 3


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """A Llama of three layers whose attention is far from uniform."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=20,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def safety_batch(seed: int = 0) -> SafetyBatch:
    """Two forbidden prompts and three allowed ones, of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(4, VOCAB, (n,), generator=generator).tolist())

    prompts = [(1, *tokens(n), 3, 2) for n in (4, 6)]
    spans = [(1, 5), (1, 7)]
    refusing = [Example(p, (5, 6, 3), s) for p, s in zip(prompts, spans, strict=True)]
    complying = [
        Example(p, (*tokens(n), 3), s) for p, s, n in zip(prompts, spans, (5, 4), strict=True)
    ]
    allowed = [Example((1, *tokens(n), 3, 2), (*tokens(n), 3), (1, 1 + n)) for n in (2, 3, 5)]
    declining = [Example(one.prompt, (5, 6, 7, 3), one.instruction) for one in allowed]
    return SafetyBatch(*(pad(side, 0) for side in (refusing, complying, allowed, declining)))
