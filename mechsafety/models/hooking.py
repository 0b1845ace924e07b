"""Edit or read a model's activations inside a `with` block, and count what really happened."""

import itertools
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from torch import Tensor, nn

from mechsafety.core.errors import EditedModelError, HookError
from mechsafety.core.sites import Site
from mechsafety.interventions.intervention import Intervention
from mechsafety.models.model import Model
from mechsafety.models.wiring import Act, Backend, Installed, Wiring

SiteT = TypeVar("SiteT", bound=Site)

# What writes a model's weights somewhere, or writes adapters into its weights.
_WAYS_OUT: Final = (
    "save_pretrained",
    "push_to_hub",
    "merge_and_unload",
    "merge_adapter",
    "unload",
)


@dataclass(slots=True)
class Count:
    """How often one edit ran."""

    calls: int = 0
    """Forward passes in which it ran."""
    tokens: int = 0
    """Tokens it touched; padding is left out where the mask is known (not under 4-D masks)."""
    decoding_calls: int = 0
    """Those of the calls that were steps of generation, with the prompt in the KV cache."""
    backend: Backend = "torch"
    """What served the site last: torch hooks on the clean model, or the TransformerLens bridge."""


@dataclass(frozen=True, slots=True)
class Accounting:
    """How often each edit ran. Filled while the block runs, and readable after it."""

    counts: Mapping[Site, Count]
    """By site."""

    @property
    def calls(self) -> dict[Site, int]:
        """Forward passes in which each edit ran."""
        return {site: count.calls for site, count in self.counts.items()}

    @property
    def tokens(self) -> dict[Site, int]:
        """Tokens that each edit touched."""
        return {site: count.tokens for site, count in self.counts.items()}


@contextmanager
def intervene(
    model: Model, edits: Mapping[SiteT, Intervention], *, tokenwise: bool = False
) -> Generator[Accounting]:
    """Replace the activation at each site by `edit(activation)`; undo on exit, exactly.

    Works in `model.forward`, `model.generate` (with the KV cache; the first generated token is
    affected), `model.tail`, under autograd and in `inference_mode`. Edits see every position of
    the padded batch in a prefill, and one position per step in generation. Contexts nest: at
    one site the inner context's edit gets what the outer one's returns; sites follow the order
    of computation. With gradient checkpointing the backward pass must run inside the block.

    While the block runs, the model cannot be saved, pushed, or merged with an adapter.

    Args:
        model: Its weights do not change, and it computes the same bits after the block.
        edits: A function per site, from an activation to a new tensor of the same shape.
        tokenwise: They treat every token by itself, such as an ablation. Where only the last
            token's logits are wanted, the last block then computes (and edits) that token alone.

    Raises:
        SiteError: The model has no such site.
        HookError: At the end, an edit that never ran (unless the block raised); at once, an edit
            that returns its argument, writes into it, or returns another shape.
    """
    accounting = Accounting({site: Count() for site in edits})
    wiring = model.wiring
    group = [
        Installed(
            site,
            _counted(site, edit, accounting.counts[site], wiring),
            reads=False,
            tokenwise=tokenwise,
        )
        for site, edit in edits.items()
    ]
    with ExitStack() as undo:
        undo.enter_context(wiring.installed(group))
        undo.enter_context(locked(_shells(model.hf), _WAYS_OUT))
        yield accounting
    _refuse_silence("intervene", accounting.calls)


@contextmanager
def reading(
    model: Model, reads: Mapping[SiteT, Callable[[Tensor], None]], *, stop: bool = False
) -> Generator[dict[Site, int]]:
    """Give the activation at each site to a function, after all edits of the site.

    Yields the number of calls per site. The functions must copy what they keep: the tensor
    belongs to the forward pass.

    Args:
        model: Any model; edits that are installed stay in force.
        reads: A function per site.
        stop: End each forward pass after the last of these sites; `model.run` then returns None.

    Raises:
        SiteError: The model has no such site.
        HookError: At the end, a site that was never reached (unless the block raised).
    """
    calls: dict[Site, int] = dict.fromkeys(reads, 0)

    def act(site: Site, read: Callable[[Tensor], None]) -> Act:
        def look(activation: Tensor) -> Tensor:
            read(activation)
            calls[site] += 1
            return activation

        return look

    group = [Installed(site, act(site, read), reads=True) for site, read in reads.items()]
    with model.wiring.installed(group, stop_after_reading=stop):
        yield calls
    _refuse_silence("reading", calls)


def _counted(site: Site, edit: Intervention, count: Count, wiring: Wiring) -> Act:
    def act(activation: Tensor) -> Tensor:
        # Inference tensors keep no version, so that there the first check stands alone.
        version = None if activation.is_inference() else activation._version
        edited = edit(activation)
        written = version is not None and activation._version != version
        if edited is activation or written:
            raise HookError(
                f"editing '{site}': the edit changed its argument in place or returned it as it "
                "was. Other tensors of the forward pass share its memory; return a new tensor "
                "(`x + v`, not `x += v`; `x.clone()` for an edit that changes nothing)."
            )
        if edited.shape != activation.shape:
            raise HookError(
                f"editing '{site}': the activation has shape {tuple(activation.shape)} and the "
                f"edit returned {tuple(edited.shape)}. Return one tensor of the same shape."
            )
        current = wiring.current
        count.calls += 1
        count.tokens += current.tokens(activation.shape)
        count.decoding_calls += current.past > 0
        count.backend = wiring.backend
        return edited.to(activation.dtype)

    return act


def _refuse_silence(what: str, calls: Mapping[Site, int]) -> None:
    silent = sorted(site for site, count in calls.items() if count == 0)
    if silent:
        raise HookError(
            f"{what}: nothing passed {len(silent)} of {len(calls)} sites while the block ran, "
            f"first of them '{silent[0]}'. Call model.forward, model.generate or model.tail "
            "inside the block, from a layer not above the site; the Hugging Face model itself "
            "does not see edits of heads and neurons."
        )


@contextmanager
def locked(modules: Iterable[nn.Module], ways: Iterable[str]) -> Generator[None]:
    """Make these methods of the modules raise while the block runs.

    A copy that is made meanwhile stays locked.
    """

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise EditedModelError(
            "saving, pushing or merging a model while an intervention is installed: mechsafety "
            "measures edited models and does not export them. Leave the `with` block first."
        )

    with ExitStack() as undo:
        for module, name in itertools.product(modules, ways):
            if hasattr(module, name) and name not in vars(module):
                setattr(module, name, refuse)
                undo.callback(delattr, module, name)
        yield


def _shells(hf: nn.Module) -> Iterable[nn.Module]:
    """The model and the wrappers that PEFT puts around it."""
    found: list[nn.Module] = [hf]
    for step in ("base_model", "model"):
        inner = getattr(found[-1], step, None)
        if isinstance(inner, nn.Module):
            found.append(inner)
    return found
