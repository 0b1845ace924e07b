# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From prompts to a direction, by hand
#
# Where in a model do harmful and harmless prompts part? Is that what makes the model refuse? And
# would any other direction have done the same? Thirty lines of code, on a model that was trained
# for this: an *organism* of 0.2 M parameters, of which we know what it refuses. The words are its
# own small language; nothing in it is harmful.

# %%
import plotly.express as px
import torch

import mechsafety as ms
from mechsafety.effects.answers import answer
from mechsafety.judges.rates import rates
from mechsafety.metrics.matched_controls import control_test, draw_energy_matched, draw_norm_matched
from mechsafety.metrics.separation import separation

# %% [markdown]
# ## 1. Prompts
#
# 48 twins to fit on and 48 others to measure on. A twin is one request in two forms that differ in
# a word or two: the first is forbidden to this model, the second is allowed. No pair of verb and
# object is in both halves. Prompts of your own come from
# `ms.read_pairs("pairs.csv[harmful]", "pairs.csv[harmless]", "twins")`; see `docs/prompts.md`.

# %%
model = ms.open_model(f"{ms.__path__[0]}/../tests/fixtures/organisms_small/ssft")
fit, new = (ms.twins(48, seed=0, split=split, preset="small") for split in ("fit", "evaluate"))
prompts = [ms.tokenize(model, side, ms.ChatFormat()) for side in (*fit.sets, *new.sets)]

# %% [markdown]
# ## 2. Activations, and where they part
#
# The residual stream at the last token, before each block but the first. At each of these sites the
# direction is the mean of the harmful rows minus the mean of the harmless ones, *of the fitted
# half*; how far it tells the classes apart is read on the *other* half, because rows that a
# direction was fitted to separate even where nothing does. d′ is the distance between the two means
# in standard deviations; AUC is the chance that a harmful prompt lies further along than a harmless
# one. Both are of 48 and 48 held-out prompts.

# %%
sites = [ms.ResidualSite(layer, "resid_pre") for layer in range(1, model.dims.n_layers)]
read = [ms.collect(model, part, sites, ["last"]) for part in prompts]
for site in sites:
    harmful, harmless, *held_out = (part.rows(site, "last") for part in read)
    direction = ms.DifferenceInMeans().fit(harmful, harmless)
    along = [rows @ direction.basis[0] for rows in held_out]
    print(f"{site}: d′ {separation(*along).d_prime:.1f}, AUC {separation(*along).auc:.3f}")
px.histogram({"harmful": along[0], "harmless": along[1]}, barmode="overlay", nbins=50)

# %% [markdown]
# **What is seen.** The classes are apart at every site, and further apart with each block. The
# picture is of the last site: held-out prompts along the direction, in units of the activations.
#
# **What it does not show.** That the model *uses* this. A direction can tell two classes apart and
# cause nothing, and forbidden requests are told from allowed ones by their words alone. So we take
# the direction out, and put it in.
#
# ## 3. Take it out, put it in
#
# All at the last site; `harmless` and `direction` are those of the loop's last turn.
#
# * **Ablate**, in the affine form: set every activation's part along the direction to the harmless
#   mean. Are harmful prompts answered?
# * **Add** the direction at its own length. Are harmless prompts refused?
#
# Beside each stand 19 **matched controls**: random directions whose ablation takes as much energy
# out of the activations, and random vectors of the same norm. An isotropic random direction is no
# control for an ablation: activations hardly vary along it, so that taking it out takes nothing.
#
# Answers are generated greedily, 24 tokens each, and judged by the one phrase with which organisms
# refuse.

# %%
judge, level = ms.PhraseJudge(phrases="organism"), {site: harmless.mean(0)}


def refusals(asked, edits=None):
    return rates(answer(model, asked, judge, 24, 4096, edits).verdicts, 24, judge.name).refused


random = draw_energy_matched(harmless, direction.basis, 19, torch.Generator().manual_seed(0), True)
ablated = [refusals(prompts[2], ms.affine_ablation(b, level)) for b in (direction.basis, *random)]
random = draw_norm_matched(direction.vector, 19, torch.Generator().manual_seed(1), harmless)
added = [refusals(prompts[3], ms.addition(site, v, 1.0)) for v in (direction.vector, *random)]

# %% [markdown]
# ## 4. The answers, judged
#
# Refusals of the model as it is, of harmful and of harmless prompts; then, with the direction
# ablated and with it added, the rate with its n and its 95 % interval (Wilson, over prompts) and
# the rank among the controls. With 19 controls no p-value can be below 1/20: that is its
# `resolution`. `null_low` to `null_high` is what 95 % of the controls did.

# %%
print("as it is:", *(f"{clean.count} of {clean.n}" for clean in map(refusals, prompts[2:])))
for (own, *controls), side in ((ablated, "less"), (added, "greater")):
    print(f"{own.count} of {own.n} refused, {own.interval.low:.2f} to {own.interval.high:.2f}")
    print(control_test(own.value, torch.tensor([rate.value for rate in controls]), side))
px.bar({"ablated": [r.value for r in ablated], "added": [r.value for r in added]}, barmode="group")

# %% [markdown]
# **What is seen.** Bar 0 is the direction, bars 1 to 19 are its controls. Without the direction no
# forbidden request is refused, and with it added every allowed one is. No control does either,
# though some that are added make the model refuse as well, up to half of the allowed requests: that
# is why their range is printed. At this site the direction is necessary and sufficient.
#
# **What it does not show.**
#
# * That refusal is *one* direction, or that this is the best site: nothing else was tried. The
#   study in `experiments/locality.yaml` tries every layer and position, chooses on prompts of its
#   own, and looks for a second direction.
# * That the answers are good ones. `refused` is all that was judged; the studies' tables have the
#   rate of degenerate answers and of right content beside it.
# * That any ablation does the same. Put `ms.zero_ablation(model.dims, b)` in the place of the
#   affine form: harmful prompts stay refused, and most harmless ones now are too, because that form
#   moves every activation away from the harmless level. The form is part of every number.
# * Anything about chat models. A trained organism shows what the instrument detects on a model
#   whose construction is known.
