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
# # Does latent adversarial training concentrate refusal? The claim, and its controls
#
# The claim (arXiv:2504.18872): after latent adversarial training (LAT), two components hold about
# 75 % of the harmful−harmless differences of Llama-2-7B, against about half in the baseline and
# after embedding-space adversarial training (AT). The number is real. This notebook puts beside it
# what it needs beside it, on the published activations of the three arms.
#
# They are read from the folder `llama2_7b_lat_study` below the one that the environment variable
# `MECHSAFETY_REFERENCE` names; `experiments/README.md` says where they come from. Where they are
# absent, planted data stand in their place, and a banner says so.

# %%
import os
import sys
from pathlib import Path

import pandas as pd
import plotly.express as px
import torch

import mechsafety
from mechsafety.activations.arm_files import ArmFile, read_arm_files
from mechsafety.linalg.subspace import orthonormal_basis
from mechsafety.metrics.planted import plant, with_massive_channels

sys.path.insert(0, str(Path(mechsafety.__file__).parents[1]))
from experiments.reproduce.lat_concentration import check, measure, span


class Banner(str):
    """A warning that Jupyter shows large, and Python as text."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return f'<h2 style="background:#b00020;color:white;padding:.6em">{self}</h2>'


# %% [markdown]
# ## The activations
#
# The stand-ins are three arms of Gaussian rows on the same prompts. In `baseline` and `at` a mean
# shift is planted between the classes, which is what a refusal direction is. In `lat` the shift is
# weaker, and two channels burst in some prompts, harmful and harmless alike.


# %%
def planted_arm(name, shift, bursts, layers=(11, 12), n=200, d=160):
    harmful, harmless = {}, {}
    for layer in layers:
        generator = torch.Generator().manual_seed(layer)
        rows = torch.randn(n, d, generator=generator) * torch.linspace(2.0, 0.5, d)
        basis = orthonormal_basis(torch.randn(1, d, generator=generator))
        if bursts:
            rows = with_massive_channels(rows, torch.tensor([40, 90]), 400.0, 0.05, generator)
        both = plant(rows, basis, [shift], [0.0], torch.Generator().manual_seed(0))
        harmful[layer], harmless[layer] = both.harmful, both.harmless
    return ArmFile(name, harmful, harmless, content_hash="planted")


named = os.environ.get("MECHSAFETY_REFERENCE")
folder = Path(named or "") / "llama2_7b_lat_study"
real = named is not None and folder.is_dir()
if real:
    arms, data = read_arm_files(folder), "Llama-2-7B, published activations"
    banner = data
else:
    arms = [planted_arm(*given) for given in (("baseline", 12, False), ("at", 11, False))]
    arms.append(planted_arm("lat", 6, True))
    data = "PLANTED DATA, NOT A LANGUAGE MODEL"
    banner = Banner(f"{data}: MECHSAFETY_REFERENCE names no folder with llama2_7b_lat_study.")
print(banner)
banner

# %% [markdown]
# ## Everything at once
#
# `measure` is the code of `experiments/reproduce/lat_concentration.py`, unchanged: each arm's
# differences, paired by list order as published, at layer 12. Every share has a 95 % interval by
# delete-group jackknife. (Not by bootstrap: rows drawn twice make a spectrum more concentrated than
# it is, and such an interval can exclude its own estimate.) Where the files are those of the study,
# its published numbers are compared one by one.

# %%
LAYER = 12
report = measure(arms, [LAYER], "list", seed=0)
check(report, arms, [LAYER])
if report.checks:
    agree = sum(one["ok"] for one in report.checks)
    print(f"{agree} of {len(report.checks)} published numbers agree")
cells = pd.DataFrame([cell for cell in report.cells if not cell["centered"]])
plain = cells[cells["control"] == "all"]


def bars(rows, columns, **options):
    parts = [
        rows.assign(
            number=name,
            share=rows[column],
            above=rows[f"{column}_high"] - rows[column],
            below=rows[column] - rows[f"{column}_low"],
        )
        for name, column in columns.items()
    ]
    options |= {"error_y": "above", "error_y_minus": "below", "barmode": "group"}
    return px.bar(pd.concat(parts), y="share", color="number", **options)


# %% [markdown]
# ## 1. Specificity before size
#
# Beside the share of harmful−harmless differences stands the same share of differences that are not
# about harm: between two harmless prompts, and between two harmful ones.

# %%
for row in plain.to_dict("records"):
    print(
        f"{row['arm']}: two components hold {span(row, 'top2')} of harmful−harmless, "
        f"{span(row, 'harmless_harmless')} of harmless−harmless, "
        f"{span(row, 'harmful_harmful')} of harmful−harmful"
    )
    print(f"{'':>{len(row['arm'])}}  excess over harmless−harmless {span(row, 'excess')}")
contrasts = {
    "harmful − harmless": "top2",
    "harmless − harmless": "harmless_harmless",
    "harmful − harmful": "harmful_harmful",
}
bars(plain, contrasts, x="arm", title=f"Share of the first two components, layer {LAYER}: {data}")

# %% [markdown]
# **What is seen.** The bar of the claim is tall in LAT, and so are the two beside it: any two
# prompts differ in those components, whatever they are about. In the other arms the first bar
# stands out. **The excess over harmless−harmless is what matters**, and it is smallest in the arm
# with the largest share.
#
# ## 2. The null that can fail
#
# Labels permuted *across* pairs. (Swapping them within pairs multiplies rows by −1 and leaves every
# uncentered share as it was: an identity that looks like a null.) A share inside this range is what
# the activations give whatever the labels say.

# %%
for row in plain.to_dict("records"):
    print(f"{row['arm']}: {row['top2']:.3f}, null {row['null_low']:.3f} to {row['null_high']:.3f}")

# %% [markdown]
# ## 3. Where LAT's share comes from: massive channels, in and out
#
# A channel is massive if somewhere its largest entry is over 200 times the median and it is bursty.
# It is found on raw activations of both classes and all layers, and what is found in any arm leaves
# *every* arm. Four controls and a placebo: all of it; without those channels; without the pairs
# that they affect; without both; and without as many ordinary channels of high energy.

# %%
for arm in report.arms:
    print(f"{arm['arm']}: massive {arm['massive_channels']}, {arm['affected_rows']} affected rows")
for row in plain.to_dict("records"):
    print(f"{row['arm']}: {row['mechanism']}")
bars(
    cells[cells["arm"] == "lat"],
    {"harmful − harmless": "top2", "harmless − harmless": "harmless_harmless"},
    x="control",
    title=f"LAT, layer {LAYER}, under the controls: {data}",
)

# %% [markdown]
# **What is seen.** Without two channels, or without the pairs in which they burst, LAT's share
# falls to about that of the other arms, or below it; taking out ordinary channels does nothing.
# What is left exceeds harmless−harmless: the bursts had hidden that.
#
# ## 4. The comparison that the claim is about
#
# LAT minus baseline, on the same prompts, with the interval *of the difference*: for the share that
# was published, and for the part of it that is specific to harm.

# %%
for row in report.differences:
    if row["arm"] == "lat" and row["control"] in ("all", "channels_out") and not row["centered"]:
        print(f"{row['control']}: share {span(row, 'top2')}, excess {span(row, 'excess')}")
bars(
    cells,
    {"excess over harmless − harmless": "excess"},
    x="arm",
    facet_col="control",
    title=f"Excess over harmless−harmless, layer {LAYER}: {data}",
)

# %% [markdown]
# **What is seen.** By its share LAT is more concentrated than the baseline. By the part that is
# specific to harm it is less so, with the massive channels and without them.
#
# **What it does not show.**
#
# * What LAT does in general. These are three checkpoints, one of each kind, and the unit of
#   replication is the training run.
# * Why there are massive channels after LAT, or whether they carry refusal. That is a question
#   about causes, and these are stored activations.
# * That one layer and one pairing tell it all. `experiments/reproduce/lat_concentration.py` prints
#   every layer, centered as well, and its `--pairing all` pairs each harmful prompt with each
#   harmless one.
