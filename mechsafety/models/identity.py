# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Reason: transformers' configs and tokenizers are untyped.
"""Hashes by which a record says which model it was, whatever the model was called."""

import hashlib
import json
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mechsafety.models.anatomy import architecture, inner_model
from mechsafety.models.spec import ModelSpec
from mechsafety.models.twin import parameter_state

_known: "WeakKeyDictionary[nn.Module, tuple[object, str]]" = WeakKeyDictionary()


def identity(hf: nn.Module, tokenizer: Any, spec: ModelSpec | None) -> dict[str, str]:
    """Name, revision, precision, and SHA-256 of weights, tokenizer and chat template.

    The revision is the commit that was resolved, where the model came from the Hub. An absent
    part is an empty string.
    """
    model = inner_model(hf)
    commit = getattr(model.config, "_commit_hash", None)
    return {
        "id": "in memory" if spec is None else spec.id,
        "revision": str(commit or (spec.revision if spec else None) or ""),
        "adapter": "" if spec is None or spec.adapter is None else spec.adapter,
        "adapter_revision": "" if spec is None else spec.adapter_revision or "",
        "architecture": architecture(model),
        "dtype": str(next(p.dtype for p in hf.parameters() if p.is_floating_point())).removeprefix(
            "torch."
        ),
        "quantization": "none" if spec is None else spec.quantization,
        "weights": weights_hash(hf),
        "tokenizer": tokenizer_hash(tokenizer),
        "template": template_hash(tokenizer),
    }


def weights_hash(hf: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and persistent buffer.

    Every tensor enters whole, since a sample would miss an edit elsewhere. One tensor at a time
    is on the CPU. Remembered until a parameter changes.
    """
    state = parameter_state(hf)
    found = _known.get(hf)
    if found is not None and found[0] == state:
        return found[1]
    digest = hashlib.sha256()
    # The class's own method: with its weights edited, the model itself gives none away.
    for name, value in sorted(type(hf).state_dict(hf).items()):
        if not isinstance(value, Tensor):
            continue
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(cast("Any", flat.view(torch.uint8).numpy()))
    _known[hf] = (state, digest.hexdigest())
    return _known[hf][1]


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of all that decides ids, without the state that padding a batch leaves behind."""
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        text = json.dumps(sorted(tokenizer.get_vocab().items()))
    else:
        settings = cast("dict[str, Any]", json.loads(backend.to_str()))
        settings.pop("padding", None)
        settings.pop("truncation", None)
        text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def template_hash(tokenizer: Any) -> str:
    """SHA-256 of the tokenizer's own chat template, or an empty string without one."""
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        return ""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()
