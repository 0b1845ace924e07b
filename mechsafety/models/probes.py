"""Does the inside of this model agree with its own forward pass? Asked before hours are spent.

Each probe gives one number that must not exceed a tolerance, relative to the size of what is
compared. Random token ids serve for all probes but those of the chat template.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from mechsafety.core.errors import (
    ActivationError,
    HookError,
    ModelError,
    SiteError,
    TemplateError,
)
from mechsafety.core.sites import RESIDUAL_STREAMS, HeadSite, NeuronSite, ResidualSite, Site
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.prompts import Prompt
from mechsafety.interventions.intervention import Intervention
from mechsafety.models.hooking import intervene, reading
from mechsafety.models.model import Model
from mechsafety.models.probe_report import Probe, ProbeReport
from mechsafety.models.spec import ModelSpec
from mechsafety.models.tokens import Side, TokenBatch, TokenizedPrompts, count_bos, encode, pad

LENGTHS: Final = (11, 4, 7)
"""Tokens of the probed prompts: unequal, so that padding is really there."""

TOLERANCES: Final[dict[torch.dtype, float]] = {
    torch.float64: 1e-5,
    torch.float32: 1e-4,
    torch.float16: 3e-2,
    torch.bfloat16: 0.15,
}
"""Relative rounding between two correct ways to compute the same, through all layers; a site that
is misread differs by a tenth to one."""

# Two instructions of different content and length, for what must depend on neither.
_INSTRUCTIONS: Final = ("Describe a tree.", "How many hours does a day have, please?")


def check_model(
    source: str | Path | ModelSpec | nn.Module,
    *,
    sites: Sequence[Site] = (),
    format: ChatFormat | None = None,
    **how: Any,
) -> ProbeReport:
    """Open a model and probe it, without refusing it: for `mechsafety check`.

    Args:
        source: As for `open_model`.
        sites: Sites that must fire, beside all of the residual stream's.
        format: The chat format to probe with.
        how: dtype, device, device_map and tokenizer, as for `open_model`.
    """
    # Opening probes too, so that the import at the top would be a circle.
    from mechsafety.models.loading import open_model

    return probe_model(open_model(source, probe=False, **how), sites=sites, format=format)


def probe_model(
    model: Model, *, sites: Sequence[Site] = (), format: ChatFormat | None = None
) -> ProbeReport:
    """Run every probe that applies. Nothing stays installed."""
    probing = _Probing(model)
    with torch.inference_mode():
        probes = [
            probing.sites_fire(sites),
            probing.hooked_logits(),
            probing.last_token_alone(),
            probing.contributions_add_up(),
            probing.blocks_connect(),
            *probing.bridge_agrees(),
            probing.padding("left"),
            probing.padding("right"),
            *_template_probes(model, format or ChatFormat(), probing.tolerance),
        ]
    return ProbeReport(tuple(probes))


class _Probing:
    """The probes that random token ids serve for; what several need is computed once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.tolerance = TOLERANCES.get(model.dtype, 1e-4)
        generator = torch.Generator().manual_seed(0)
        self.ids = [
            [int(i) for i in torch.randint(model.dims.d_vocab, (length,), generator=generator)]
            for length in LENGTHS
        ]
        self.batch = pad(self.ids, range(len(LENGTHS)), 0, "left")
        self.mask = self.batch.attention_mask.bool()
        streams = [
            ResidualSite(layer, stream)
            for layer in range(model.dims.n_layers)
            for stream in RESIDUAL_STREAMS
        ]
        self.sites = [site for site in streams if _has(model, site)]
        self.found, self.logits = self.read(self.sites, self.batch)
        self.refuse_non_finite()

    def refuse_non_finite(self) -> None:
        """No comparison says anything about NaN, so these are refused before the probes.

        Raises:
            ActivationError: An activation of a real token is NaN or infinite.
        """
        spoiled = [
            str(site)
            for site, x in self.found.items()
            if not x[self.mask.to(x.device)].isfinite().all()
        ]
        if spoiled:
            raise ActivationError(
                f"probing the model: {len(spoiled)} of {len(self.found)} residual sites hold NaN "
                f"or infinite values in {self.model.dtype}, first {spoiled[0]}. Check its "
                "weights for NaN; if they have none, open it with another `dtype`."
            )

    def read(self, sites: Sequence[Site], batch: TokenBatch) -> tuple[dict[Site, Tensor], Tensor]:
        """Activations at every site that fires, and the logits."""
        found: dict[Site, Tensor] = {}
        logits = torch.empty(0)

        def keep(site: Site, activation: Tensor) -> None:
            found[site] = activation.clone()

        # Silence is what `sites_fire` measures; here it leaves a site out.
        with suppress(HookError), reading(self.model, {s: partial(keep, s) for s in sites}):
            logits = self.model.forward(batch, keep="all")
        return found, logits

    def deviation(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
        """`_deviation` of the batch's real tokens: attention over padding has no right answer."""
        return _deviation(
            [(x[self.mask.to(x.device)], y[self.mask.to(y.device)]) for x, y in pairs]
        )

    def sites_fire(self, asked: Sequence[Site]) -> Probe:
        """Every residual site, and every one asked for, gives a tensor of its width."""
        dims = self.model.dims
        inner = [site for site in asked if isinstance(site, HeadSite | NeuronSite)]
        if self.bridgeable:
            inner += [HeadSite(layer, 0) for layer in range(dims.n_layers)]
        if self.bridgeable and dims.d_mlp is not None:
            inner += [NeuronSite(layer) for layer in range(dims.n_layers)]
        inner = list(dict.fromkeys(inner))
        found = {**self.found, **(self.read(inner, self.batch)[0] if inner else {})}
        wanted: list[Site] = [*self.sites, *inner]
        silent = [s for s in wanted if s not in found or found[s].shape[-1] != s.width(dims)]
        named = f"; silent or of another width: {', '.join(map(str, silent[:4]))}"
        detail = f"of {len(wanted)} sites{named if silent else ', all fire with their width'}"
        return _probe("sites that do not fire", len(silent), 0, detail)

    def hooked_logits(self) -> Probe:
        """Edits that change nothing change nothing."""
        plain = self.plain_logits()
        unchanged: dict[Site, Intervention] = dict.fromkeys(self.found, torch.clone)
        with intervene(self.model, unchanged):
            hooked = self.model.forward(self.batch, keep="all")
        detail = "logits with an edit that changes nothing at every residual site, against none"
        value = self.deviation([(hooked, plain)])
        return _probe("hooked forward", value, self.tolerance, detail)

    def last_token_alone(self) -> Probe:
        """Where only the last token is wanted, the last block computes no other: same logits."""
        alone = self.model.forward(self.batch)
        everything = self.plain_logits()[:, -1]
        detail = "logits of the last token, computed alone in the last block, against all tokens'"
        return _probe("last token alone", _deviation([(alone, everything)]), self.tolerance, detail)

    def contributions_add_up(self) -> Probe:
        """The resid_pre, attn_out and mlp_out of a block add up to its resid_post."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for layer in range(self.model.dims.n_layers):
            pre, attn, mlp, post = (
                self.found.get(ResidualSite(layer, stream))
                for stream in ("resid_pre", "attn_out", "mlp_out", "resid_post")
            )
            if pre is not None and attn is not None and mlp is not None and post is not None:
                pairs.append((pre + attn + mlp, post))
        parts = self.model.wiring.anatomy
        kind = "parallel" if parts.parallel else "sequential"
        kind += " blocks with norms behind attention and MLP" if parts.post_norm else " blocks"
        if not pairs:
            kind = "not compared: no module's output is a contribution in this architecture"
        detail = f"resid_pre + attn_out + mlp_out against resid_post; {kind}"
        return _probe("residual contributions", self.deviation(pairs), self.tolerance, detail)

    def blocks_connect(self) -> Probe:
        """What a block gives is what the next one gets."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for layer in range(self.model.dims.n_layers - 1):
            post = self.found.get(ResidualSite(layer, "resid_post"))
            pre = self.found.get(ResidualSite(layer + 1, "resid_pre"))
            if post is not None and pre is not None:
                pairs.append((post, pre))
        detail = "resid_post of each layer against resid_pre of the next"
        return _probe("residual stream", self.deviation(pairs), 0.0, detail)

    def bridge_agrees(self) -> list[Probe]:
        """TransformerLens computes the same logits and residual sites by its own way."""
        if not self.bridgeable:
            return [_probe("bridge", 0.0, self.tolerance, "not bridged: 8-bit weights")]
        # A read at a head makes the bridge serve the pass, and with it every other site.
        there, logits = self.read([HeadSite(0, 0), *self.sites], self.batch)
        compared = self.deviation([(logits, self.plain_logits())])
        pairs = [(there[s], here) for s, here in self.found.items() if s in there]
        silent = len(self.found) - len(pairs)
        return [
            _probe(
                "bridge logits",
                compared,
                self.tolerance,
                "logits through the TransformerLens bridge against Hugging Face",
            ),
            _probe(
                "bridge sites",
                1.0 if silent else self.deviation(pairs),
                self.tolerance,
                f"{len(pairs)} residual sites (resid_mid too, where there is one) through the "
                f"bridge against torch hooks; {silent} do not fire there",
            ),
        ]

    def padding(self, side: Side) -> Probe:
        """Padded rows give what each prompt gives alone."""
        padded = pad(self.ids, range(len(self.ids)), 0, side)
        together, logits = self.read(self.sites, padded)
        pairs: list[tuple[Tensor, Tensor]] = []
        for row, ids in enumerate(self.ids):
            alone, expected = self.read(self.sites, pad([ids], [0], 0, side))
            start = int(padded.offsets[row])
            real = slice(start, start + len(ids))
            pairs += [(together[s][row, real], alone[s][0]) for s in self.found]
            pairs.append((logits[row, real], expected[0]))
        detail = f"every residual site and the logits, {side}-padded against one prompt alone"
        return _probe(f"{side} padding", _deviation(pairs), self.tolerance, detail)

    @property
    def bridgeable(self) -> bool:
        """Whether this model can have a TransformerLens twin."""
        try:
            self.model.wiring.twin()
        except ModelError:
            return False
        return True

    def plain_logits(self) -> Tensor:
        """The Hugging Face model's own logits, without any hook."""
        there = self.batch.to(self.model.device)
        return self.model.hf(
            input_ids=there.ids,
            attention_mask=there.attention_mask,
            position_ids=there.position_ids,
            use_cache=False,
        ).logits


def _template_probes(model: Model, format: ChatFormat, tolerance: float) -> list[Probe]:
    names = ("BOS tokens", "template at layer 0")
    if model.tokenizer is None:
        return [_probe(name, 0, 1, "not probed: the model has no tokenizer") for name in names]
    try:
        prompts = encode(model.tokenizer, [Prompt.of(text) for text in _INSTRUCTIONS], format)
    except TemplateError as error:
        return [_probe(name, 0, 1, f"not probed: {error}") for name in names]
    bos = max(count_bos(ids, model.tokenizer.bos_token_id) for ids in prompts.ids)
    first = _probe(names[0], bos, 1, "BOS tokens at the start of a templated prompt")
    return [first, _layer_zero(model, prompts, names[1], tolerance)]


def _layer_zero(model: Model, prompts: TokenizedPrompts, name: str, tolerance: float) -> Probe:
    """With rotary positions, a template token at layer 0 is the same whatever the instruction."""
    if not model.wiring.anatomy.rotary:
        return _probe(name, 0, tolerance, "not probed: positions are added at layer 0")
    shared = min(span.n_tokens - span.instruction[1] for span in prompts.spans)
    if shared == 0:
        return _probe(name, 0, tolerance, "not probed: no template tokens after the instruction")
    batch = pad(prompts.ids, range(len(prompts)), prompts.pad_id, "left")
    found: list[Tensor] = []
    with reading(model, {ResidualSite(0, "resid_pre"): found.append}, stop=True):
        model.run(batch)
    first, second = found[0][:, -shared:]
    same = batch.ids[0, -shared:] == batch.ids[1, -shared:]
    merged = [f"eoi[{int(i) - shared}]" for i in (~same).nonzero().flatten()]
    counts = {span.n_tokens - span.instruction[1] for span in prompts.spans}
    detail = f"difference of two prompts at {shared} template tokens before the first block"
    if merged or len(counts) > 1:
        where = ", ".join(merged) or f"the number of template tokens ({counts})"
        detail += f"; {where} depends on the text before it, because tokens merge there"
    pairs = [(first[same], second[same])] if bool(same.any()) else []
    return _probe(name, _deviation(pairs), min(tolerance, 1e-6), detail)


def _has(model: Model, site: Site) -> bool:
    try:
        model.wiring.check(site)
    except SiteError:
        return False
    return True


def _deviation(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Largest relative difference of any token: mean |x − y| over mean |y| along the last axis.

    By token and by mean, because trained models have a few channels and tokens that are a
    thousand times larger than the rest; beside them a fault everywhere else would be small.
    NaN counts as 1.
    """
    worst = 0.0
    for first, second in pairs:
        right = second.double()
        gap = (first.double().to(right.device) - right).abs().mean(-1)
        relative = (gap / right.abs().mean(-1).clamp(min=1e-30)).max().item()
        worst = max(worst, 1.0 if relative != relative else relative)
    return worst


def _probe(name: str, value: int | float, tolerance: int | float, detail: str) -> Probe:
    return Probe(name, float(value), float(tolerance), value <= tolerance, detail)
