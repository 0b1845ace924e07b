# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Reason: hooks of torch and transformer_lens take and give untyped arguments.
"""What is installed in a model right now, and where each site lives in it.

All edits and reads of a model are known here together, so that their order is decided and not
left to the order of registration: at one site edits apply outer context first, reads see what
all edits leave, and `resid_mid` comes after `attn_out` whoever asked first.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor, nn

from mechsafety.core.errors import SiteError
from mechsafety.core.sites import HeadSite, NeuronSite, ResidualSite, Site
from mechsafety.models.anatomy import Anatomy, anatomy, inner_model
from mechsafety.models.twin import Twin, make_twin, parameter_state

Backend = Literal["torch", "bridge"]
Place = Literal["input", "z", "attn_out", "neurons", "mlp_out", "output"]
Act = Callable[[Tensor], Tensor]
Acts = dict[tuple[int, Place], list[Act]]

# The one table from places to TransformerLens' hook points.
_HOOK_POINTS: Final[dict[Place, str]] = {
    "input": "blocks.{}.hook_in",
    "z": "blocks.{}.attn.hook_z",
    "attn_out": "blocks.{}.hook_attn_out",
    "neurons": "blocks.{}.mlp.hook_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "output": "blocks.{}.hook_out",
}


class Arrived(Exception):  # noqa: N818 - no error: it leaves a forward pass that has done its work
    """The last site that was asked for has been read."""


@dataclass(frozen=True, slots=True)
class Installed:
    """One edit or read at one site."""

    site: Site
    act: Act
    """A read returns its argument."""
    reads: bool
    """Reads come after all edits of the site."""
    tokenwise: bool = False
    """The edit treats every token by itself, so that tokens may be left out."""


@dataclass(slots=True)
class Pass:
    """The forward pass that is under way."""

    mask: Tensor | None = None
    """0/1 per token, of the cached ones too, where the caller gave one."""
    past: int = 0
    """Tokens in the KV cache: 0 in a prefill, more in a decoding step."""
    _counted: dict[int, int] = field(default_factory=dict[int, int])

    def tokens(self, shape: Sequence[int]) -> int:
        """Tokens among the positions of `[batch, pos, ...]`, without padding where it is known."""
        pos = shape[1]
        if pos not in self._counted:
            mask = self.mask
            if mask is not None and mask.ndim == 2 and mask.shape[-1] >= pos:
                self._counted[pos] = int(mask[:, -pos:].sum())
            else:
                self._counted[pos] = shape[0] * pos
        return self._counted[pos]


class Wiring:
    """The hooks of one model. Nothing is hooked while nothing is installed."""

    def __init__(self, hf: nn.Module) -> None:
        self._hf = hf
        self._stack: list[tuple[Installed, ...]] = []
        self._last_read: Site | None = None
        self._hooks = ExitStack()
        self._twin: Twin | None = None
        self.backend: Backend = "torch"
        """What serves a forward pass now: TransformerLens where heads or neurons are asked for."""
        self.current = Pass()
        """The forward pass under way, for edits and accounting that ask."""

    @property
    def anatomy(self) -> Anatomy:
        """Where the parts of the model are."""
        return anatomy(self._hf)

    @property
    def edited(self) -> bool:
        """Whether any edit is installed."""
        return any(not one.reads for group in self._stack for one in group)

    def watches_last_block(self) -> bool:
        """Whether anything sees what the last block computes, at whatever token."""
        last = self.anatomy.dims.n_layers - 1
        seeing = (one.site for group in self._stack for one in group if not one.tokenwise)
        return any(site.layer == last and _place(site) != "input" for site in seeing)

    @property
    def runner(self) -> nn.Module:
        """The Hugging Face model to call, so that everything that is installed takes effect."""
        if self.backend == "torch" or self._twin is None:
            return self._hf
        return self._twin.hf

    def twin(self) -> Twin:
        """The bridged twin, made when first needed and again when the weights have changed."""
        if not self._twin_is_fresh():
            self._hooks.close()
            self._make_twin()
            self._rewire()
        return cast("Twin", self._twin)

    def check(self, site: Site) -> None:
        """Refuse a site that this model does not have.

        Raises:
            SiteError: Which sites there are instead.
        """
        site.check(self.anatomy.dims)
        if not isinstance(site, ResidualSite):
            return
        if site.stream == "resid_mid" and self.anatomy.parallel:
            raise SiteError(
                f"site '{site}': attention and MLP of this model read the same residual stream "
                "(parallel blocks), so nothing lies between them. Use resid_pre, attn_out, "
                "mlp_out or resid_post."
            )
        part = {"attn_out": self.anatomy.attn_out, "resid_mid": self.anatomy.attn_out}
        part["mlp_out"] = self.anatomy.mlp_out
        if part.get(site.stream, "") is None:
            raise SiteError(
                f"site '{site}': in this architecture no module's output is the tensor that is "
                "added to the residual stream. Use resid_pre or resid_post."
            )

    @contextmanager
    def installed(
        self, group: Sequence[Installed], *, stop_after_reading: bool = False
    ) -> Generator[None]:
        """Install the group; on exit the model is as before, even if installing failed half-way.

        Args:
            group: Edits and reads at sites that the model has.
            stop_after_reading: End each forward pass with `Arrived` once the last of these
                reads is done.
        """
        for one in group:
            self.check(one.site)
        before = self._last_read
        self._stack.append(tuple(group))
        if stop_after_reading:
            self._last_read = max(one.site for one in group if one.reads)
        try:
            self._rewire()
            yield
        finally:
            self._stack.pop()
            self._last_read = before
            self._rewire()

    def _twin_is_fresh(self) -> bool:
        made_from = None if self._twin is None else self._twin.made_from
        return made_from == parameter_state(inner_model(self._hf))

    def _make_twin(self) -> None:
        # Only while no hook of ours is on the model: the copy would take them along.
        if not self._twin_is_fresh():
            self._twin = make_twin(self._hf)

    def _rewire(self) -> None:
        """Take all hooks off, and put on those of everything that is installed."""
        self._hooks.close()
        self._hooks = ExitStack()
        sites = [one.site for group in self._stack for one in group]
        inner = any(isinstance(site, HeadSite | NeuronSite) for site in sites)
        self.backend = "bridge" if inner else "torch"
        if not self._stack:
            return
        if self.backend == "bridge":
            self._make_twin()
        with ExitStack() as undo:
            model = inner_model(self.runner)
            parent = model.get_submodule(self.anatomy.blocks.rpartition(".")[0])
            handle = parent.register_forward_pre_hook(self._begin, with_kwargs=True)
            undo.callback(handle.remove)
            for (layer, place), acts in self._acts().items():
                act = _chained(acts)
                if self.backend == "bridge":
                    bridge = cast("Twin", self._twin).bridge
                    hook = (_HOOK_POINTS[place].format(layer), partial(_on_bridge, act))
                    undo.enter_context(bridge.hooks(fwd_hooks=[hook]))
                else:
                    undo.callback(self._hook_torch(layer, place, act))
            self._hooks = undo.pop_all()

    def _begin(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        mask = kwargs.get("attention_mask")
        self.current = Pass(mask if isinstance(mask, Tensor) else None, past)

    def _acts(self) -> Acts:
        """What happens at each place of the model, in order."""
        by_site: dict[Site, list[Installed]] = {}
        everything = [one for group in self._stack for one in group]
        for one in sorted(everything, key=lambda one: one.reads):
            by_site.setdefault(one.site, []).append(one)
        acts: Acts = {}
        for site in sorted(by_site):
            act = _chained([one.act for one in by_site[site]])
            edits = not all(one.reads for one in by_site[site])
            if isinstance(site, HeadSite):
                act = partial(_at_head, site.head, act, edits)
            elif isinstance(site, ResidualSite) and site.stream == "resid_mid":
                middle = _Middle(act, edits)
                acts.setdefault((site.layer, "input"), []).append(middle.remember)
                act = middle
            acts.setdefault((site.layer, _place(site)), []).append(act)
        if self._last_read is not None:
            acts[self._last_read.layer, _place(self._last_read)].append(_arrive)
        return acts

    def _hook_torch(self, layer: int, place: Place, act: Act) -> Callable[[], None]:
        parts = self.anatomy
        block = cast("nn.ModuleList", inner_model(self._hf).get_submodule(parts.blocks))[layer]
        if place == "input":
            hook = partial(_on_input, act)
            return block.register_forward_pre_hook(hook, with_kwargs=True).remove
        name = {"attn_out": parts.attn_out, "mlp_out": parts.mlp_out, "output": ""}[place]
        module = block.get_submodule(cast("str", name))
        return module.register_forward_hook(partial(_on_output, act)).remove


class _Middle:
    """Edits of the stream between attention and MLP, exact on the skip connection too.

    TransformerLens' own point for it is the input of the MLP's norm: what is returned there
    reaches the MLP but not the skip. So the edit is written into what attention adds:
    $a + f(x + a) - (x + a)$ (transformerlens.md, section 4).
    """

    def __init__(self, act: Act, edits: bool) -> None:
        self._act = act
        self._edits = edits
        self._stream: Tensor | None = None

    def remember(self, stream: Tensor) -> Tensor:
        """Keep what enters the block, after all edits of it."""
        self._stream = stream
        return stream

    def __call__(self, attn_out: Tensor) -> Tensor:
        """Attention's contribution, such that the stream after it is the edited one."""
        stream, self._stream = cast("Tensor", self._stream), None
        middle = stream + attn_out
        edited = self._act(middle)
        return attn_out + (edited - middle) if self._edits else attn_out


def _place(site: Site) -> Place:
    if isinstance(site, HeadSite):
        return "z"
    if isinstance(site, NeuronSite):
        return "neurons"
    places: dict[str, Place] = {
        "resid_pre": "input",
        "attn_out": "attn_out",
        "resid_mid": "attn_out",
        "mlp_out": "mlp_out",
        "resid_post": "output",
    }
    return places[cast("ResidualSite", site).stream]


def _chained(acts: Sequence[Act]) -> Act:
    """One act after the other; one alone is not wrapped, as it may run 10,000 times a second."""
    return acts[0] if len(acts) == 1 else partial(_chain, acts)


def _chain(acts: Sequence[Act], activation: Tensor) -> Tensor:
    for act in acts:
        activation = act(activation)
    return activation


def _at_head(head: int, act: Act, edits: bool, heads: Tensor) -> Tensor:
    """Act on one head of `[batch, pos, head, d_head]`."""
    new = act(heads[:, :, head])
    if not edits:
        return heads
    return torch.cat([heads[:, :, :head], new[:, :, None], heads[:, :, head + 1 :]], dim=2)


def _arrive(_activation: Tensor) -> Tensor:
    raise Arrived


def _on_input(
    act: Act, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (act(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": act(kwargs["hidden_states"])}


def _on_output(act: Act, _module: nn.Module, _args: Any, output: Any) -> Any:
    # Attention returns (output, weights); blocks return tensors or tuples, by family.
    return act(output) if isinstance(output, Tensor) else (act(output[0]), *output[1:])


def _on_bridge(act: Act, tensor: Tensor, *, hook: Any) -> Tensor:
    return act(tensor)
