# pyright: reportUnknownMemberType=false
# Reason: transformers is untyped.
"""One opener for everything that can be a model."""

from pathlib import Path
from typing import Any

from torch import nn

from mechsafety.data.chat_template import ChatFormat
from mechsafety.models.anatomy import architecture, inner_model
from mechsafety.models.checkpoints import load
from mechsafety.models.model import Model
from mechsafety.models.probes import probe_model
from mechsafety.models.spec import ModelSpec

__all__ = ["Model", "open_model"]


def open_model(
    source: str | Path | ModelSpec | nn.Module,
    *,
    tokenizer: Any = None,
    dtype: str = "float32",
    device: str = "cpu",
    device_map: str | None = None,
    probe: bool = True,
    format: ChatFormat | None = None,
    pass_tokens: int | None = None,
) -> Model:
    """Open a folder, a Hugging Face id, a `ModelSpec` or a model in memory, and probe it.

    Args:
        source: A folder written by `save_pretrained`; `org/name` or `org/name@revision`; a
            `ModelSpec`; or a Hugging Face model (PEFT-wrapped or not), which is used as it is.
        tokenizer: Takes the place of the source's own.
        dtype: Precision to load in, or `auto` for the checkpoint's; a model in memory keeps its.
        device: Where to load to, such as `cuda:0`; a model in memory stays where it is.
        device_map: Passed to Hugging Face, such as `auto`, for models larger than one device.
        probe: Compare the model's sites with its own forward pass before anything is measured,
            and keep the report in `Model.probes`. Costs a few forward passes of short prompts.
        format: The chat format that will be used, so that the probes see the same template.
        pass_tokens: Most padded tokens of one forward pass without KV cache; None: what suits the
            device. Which prompts share a pass changes the last bits of results.

    Raises:
        ModelError: The model cannot be opened.
        ProbeError: A probe failed; the message says which and by how much.
    """
    if isinstance(source, nn.Module):
        hf, spec = source, None
    else:
        spec = ModelSpec.model_validate(str(source) if isinstance(source, Path) else source)
        hf, own = load(spec, dtype=dtype, device=device, device_map=device_map)
        tokenizer = own if tokenizer is None else tokenizer
    inner = inner_model(hf.eval())
    # A model that was made from a config does not know its own architecture's name.
    inner.config.architectures = inner.config.architectures or [architecture(inner)]
    model = Model(hf, tokenizer, spec, pass_tokens)
    if probe:
        model.probes = probe_model(model, format=format)
        model.probes.refuse_failures(str(spec) if spec else architecture(inner))
    return model
