# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Reason: transformers and peft are untyped.
"""Weights and tokenizer from a folder or from the Hugging Face Hub, or one error that teaches.

Sources: transformers, arXiv:1910.03771, on PyTorch, arXiv:1912.01703.
"""

import importlib.util
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlparse
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from mechsafety.core.errors import MissingExtraError, ModelError, did_you_mean
from mechsafety.models.spec import ModelSpec

DTYPES: Final = ("float32", "bfloat16", "float16", "float64", "auto")

# What transformers raises over files and settings that do not fit; anything else is a bug.
_FAULTS = (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError)


def load(
    spec: ModelSpec, *, dtype: str, device: str, device_map: str | None
) -> tuple[nn.Module, Any]:
    """The model in evaluation mode, and its tokenizer (None where it has none).

    Pickled weights are only read by torch's restricted loader, and code of the Hub never runs.

    Raises:
        ModelError: No such model, no configuration, damaged or missing weights, no network.
        MissingExtraError: An adapter without PEFT.
    """
    folder = Path(spec.id).expanduser()
    local = folder.exists()
    if local:
        _check_folder(folder)
    if dtype not in DTYPES:
        raise ModelError(f"opening model '{spec}': unknown dtype. {did_you_mean(dtype, DTYPES)}")
    source = str(folder) if local else spec.id
    where: dict[str, Any] = {}
    if not local:
        where = {"revision": spec.revision, "local_files_only": not _hub_is_there()}
    try:
        config = AutoConfig.from_pretrained(source, **where)
        with _quiet_in_a_pipe():
            hf, report = cast("Any", AutoModelForCausalLM).from_pretrained(
                source,
                config=config,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                device_map=device_map,
                quantization_config=_quantization(spec),
                output_loading_info=True,
                **where,
            )
    except _FAULTS as error:
        raise ModelError(_explained(spec, local, error)) from error
    # transformers fills what a checkpoint lacks with random numbers, and only warns.
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise ModelError(
            f"opening model '{spec}': the checkpoint lacks {len(missing)} of the model's weights "
            f"(first: {missing[0]}), which would be random numbers. Check that config.json and the "
            "weights belong together and that every shard is there."
        )
    if spec.adapter is not None:
        hf = _with_adapter(hf, spec)
    if device_map is None and spec.quantization == "none":
        try:
            hf = hf.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(
                f"opening model '{spec}': it does not go to device '{device}': {error}. Check "
                "`runtime.device`, or give `runtime.device_map: auto` for a model larger than one."
            ) from error
    return hf.eval(), _tokenizer(source, where)


@contextmanager
def _quiet_in_a_pipe() -> Generator[None]:
    """No bar over the loading of weights where nobody watches."""
    shown = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _hub_is_there() -> bool:
    """Whether the Hub's address can be found; else its client would retry for half a minute."""
    if getproxies() or constants.HF_HUB_OFFLINE:
        return not constants.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _check_folder(folder: Path) -> None:
    if folder.is_file():
        raise ModelError(
            f"opening model '{folder}': that is a file. Give the folder that holds it, with its "
            "config.json."
        )
    if not (folder / "config.json").is_file():
        found = sorted(path.name for path in folder.iterdir())[:8]
        raise ModelError(
            f"opening model '{folder}': the folder has no config.json (it holds: "
            f"{', '.join(found) or 'nothing'}). Expected a folder written by save_pretrained, with "
            "config.json, *.safetensors and a tokenizer."
        )


def _explained(spec: ModelSpec, local: bool, error: Exception) -> str:
    detail = " ".join(str(error).split())[:300]
    if local and isinstance(error, SafetensorError):
        advice = "The weights file is damaged or was cut off. Copy or download it again."
    elif local:
        advice = "Expected a folder written by save_pretrained, of a causal language model."
    else:
        advice = (
            "Expected a folder that exists, an organism's name, or a Hugging Face id such as "
            "'org/name' or 'org/name@revision'. Without a network, only a folder or what lies in "
            "the Hugging Face cache (HF_HOME) can be opened; gated models need a login."
        )
    return f"opening model '{spec}': {detail} {advice}"


def _quantization(spec: ModelSpec) -> Any:
    if spec.quantization == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"opening model '{spec}': quantization {spec.quantization} needs bitsandbytes, which "
            "is not installed. Install it with: pip install bitsandbytes accelerate"
        )
    from transformers import BitsAndBytesConfig

    four = spec.quantization == "4bit"
    return BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four)


def _with_adapter(hf: nn.Module, spec: ModelSpec) -> nn.Module:
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("opening a model with an adapter", "train")
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(
            hf,  # pyright: ignore[reportArgumentType]
            str(spec.adapter),
            revision=spec.adapter_revision,
        )
    except _FAULTS as error:
        detail = " ".join(str(error).split())[:300]
        raise ModelError(
            f"opening adapter '{spec.adapter}' on model '{spec.id}': {detail} Expected a PEFT "
            "adapter (adapter_config.json, adapter_model.safetensors) made for this model."
        ) from error


def _tokenizer(source: str, where: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(source, **where)
    except _FAULTS:
        # A model without tokenizer is legal: token ids can be given. `tokenize` says what lacks.
        return None
