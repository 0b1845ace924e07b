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
# # Reading a run, and comparing two
#
# Every run is a folder that can be read without the code that made it, and without a GPU or a
# model. Here one experiment runs twice, with another model and nothing else changed; then the two
# records are opened and compared. The record never changes again, so what is read here is what a
# stranger would read in a year.

# %%
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import plotly.express as px

import mechsafety
from mechsafety import open_run
from mechsafety.execution.runner import run_experiment
from mechsafety.execution.wandb_figures import plotly_figures
from mechsafety.records.verify import verify
from mechsafety.report.figures import drawing

ROOT = Path(os.path.relpath(Path(mechsafety.__file__).parents[1]))

# %% [markdown]
# ## 1. Two runs
#
# The experiment is `experiments/concentration.yaml`, made small: few prompts, few draws, one
# position. Each line below is what `--set` takes on the command line. The two models are organisms
# that were trained to refuse in two ways, SSFT (plain fine-tuning) and LAT (fine-tuning against
# attacks on the activations). The numbers are as rough as the sample is small.

# %%
SMALL = (
    "prompts.preset=small", "prompts.n=48", "cluster_by=null", "positions=[last]",
    "answers_max_new_tokens=12", "spectra.cells.groups=8", "spectra.contrasts.groups=8",
    "spectra.cells.splits=4", "spectra.contrasts.splits=4", "spectra.cells.null_draws=8",
    "spectra.cells.unrelated_pairings=4", "attack.layers=[depth:0.85]", "attack.ranks=[1]",
    "attack.n=8", "attack.max_new_tokens=12", "attack.score_draws=2", "attack.answer_draws=2",
    "runtime.workers=1", "wandb.mode=disabled",
)  # fmt: skip
folders = [
    run_experiment(
        ROOT / "experiments/concentration.yaml",
        [*SMALL, f"model={ROOT / 'tests/fixtures/organisms_small' / arm}"],
    )
    for arm in ("ssft", "lat")
]
ssft, lat = map(open_run, folders)
print(ssft.folder, lat.folder, sep="\n")

# %% [markdown]
# ## 2. What a record holds
#
# The manifest says what was run, with which code, where, and how it went. `mechsafety show RUN`
# prints it on one screen; here it is as Python values.

# %%
manifest = ssft.manifest
print(f"{manifest.study}, {ssft.status} in {manifest.seconds} s, seed {manifest.seed}")
print(f"Python {manifest.environment.python}, torch {manifest.environment.packages['torch']}")
print(f"code {manifest.environment.code_sha256[:12]}, config {manifest.config_sha256[:12]}")
print("\nstages:", *(f"{one.name}, {one.seconds:.2f} s" for one in manifest.stages), sep="\n  ")
print("\ntables:", *(f"{one.name}, {one.rows} rows" for one in manifest.tables), sep="\n  ")
print("\nfiles:", *manifest.files, sep="\n  ")

# %% [markdown]
# **Metrics** are one tidy table: a row is one number, with its interval, its n, the unit of both,
# and the dimensions that say what it is of.

# %%
spectra = ssft.metrics("spectra")
print(f"{len(spectra)} numbers of {spectra['metric'].nunique()} kinds; the first of them:")
print(spectra.loc[0].to_string())

# %% [markdown]
# **Findings** are the claims that the experiment declared before anything was measured. None has
# left the study without its n, interval and null, and each is a sentence that can be quoted.

# %%
for arm, run in {"ssft": ssft, "lat": lat}.items():
    for found in run.findings:
        print(f"{arm}: {found.verdict}. {found.claim}\n      {found.explanation}\n")

# %% [markdown]
# **Tensors** are the directions and projections themselves. Only the header is read until one is
# asked for. Do not compare the directions of two runs by their cosine alone: both were fitted on
# the same prompts, so that even under permuted labels they point the same way. The similarity study
# holds them against that null.

# %%
for name in ssft.tensor_names():
    print(f"{name}: {tuple(ssft.tensor(name).shape)}")

# %% [markdown]
# **Figures** are descriptions of tables. The run's own page, `report.html`, draws them; here is one
# as a Plotly object, the same that is mirrored to wandb.

# %%
print(ssft.report)
excess = next(figure for figure in manifest.figures if figure.id == "excess")
next(iter(plotly_figures(drawing(excess, ssft.metrics(), {})).values()))

# %% [markdown]
# ## 3. What differs between the two
#
# First the configs, with every default written out. One key must differ and no other: a second one
# would be another explanation of all that follows. The same goes for the prompts and for the code,
# the packages and the machine.

# %%
configs = {"ssft": ssft.manifest.config, "lat": lat.manifest.config}
settings = pd.DataFrame({arm: pd.json_normalize(it).loc[0] for arm, it in configs.items()})
print(settings[settings.astype(str).nunique(axis=1) > 1].to_string())
print("same prompts:", manifest.provenance["prompts"] == lat.manifest.provenance["prompts"])
print("same code and machine:", manifest.environment == lat.manifest.environment)

# %% [markdown]
# Then the tables, **row by row**. What names a row is its table, its metric and its dimensions, and
# no two rows of a record have one name. A row that only one of the runs has is news of its own.

# %%
first, second = ssft.metrics(), lat.metrics()
names = ["table", "metric", *first.columns[7:]]
both = first.merge(
    second,
    how="outer",
    on=names,
    suffixes=("_ssft", "_lat"),
    indicator="where",
    validate="one_to_one",
)
both["difference"] = both["value_lat"] - both["value_ssft"]
alone = both[both["where"] != "both"]
print(f"{len(both) - len(alone)} rows in both; {(both['difference'] == 0).sum()} equal in each bit")
print("in one alone (left: ssft, right: lat):")
print(alone[["where", "table", "metric", "value_ssft", "value_lat"]].to_string(index=False))

# %% [markdown]
# The cell that the experiment declared as its primary one: the share of the first two components,
# and its excess over pairs of harmless prompts, at every layer.

# %%
primary = both.query(
    "table == 'spectra' and metric in ('top2_share', 'excess_over_harmless_harmless') and "
    "contrast == 'harmful-harmless' and rows == 'all' and pairing == 'list' and "
    "channels == 'all' and centering == 'uncentered'"
).sort_values(["metric", "layer"])
shown = ["metric", "layer", "value_ssft", "value_lat", "difference", "n_ssft"]
print(primary[shown].round(3).to_string(index=False))

# %%
shares = both[(both["table"] == "spectra") & (both["metric"] == "top2_share")]
px.scatter(
    shares.astype({"layer": str}),
    x="value_ssft",
    y="value_lat",
    color="contrast",
    hover_data=["layer", "centering", "rows", "pairing", "channels"],
    title="Share of the first two components, every analysis: LAT over SSFT",
).add_shape(type="line", x0=0.4, y0=0.4, x1=1, y1=1, line_dash="dot")

# %% [markdown]
# **What is seen.** How far each number of one run is from its namesake in the other. Analyses on
# the diagonal of the picture are those that the choice of model does not change. Look at the
# colors: what moves for harm alone is of interest; what moves for the contrasts that have nothing
# to do with harm as well is not about harm.
#
# **What it does not show.** Whether any difference is more than noise. One of these claims is
# `supported` in the one run and `inconclusive` in the other, by .04: a difference of verdicts is no
# verdict on the difference. Each number has its interval, their difference has none, and whether
# two intervals overlap is no test, because both runs read the same prompts. Put the two models
# under `arms:` of *one* run, and it reports the paired interval of the difference. And these are
# two checkpoints: that one way of training differs from another takes several training seeds.
#
# ## 4. Is it still what was recorded?
#
# `verify` re-hashes every file and compares it with the manifest, and the manifest with its seal.
# In a copy, one verdict is turned round.

# %%
print(verify(ssft))
with TemporaryDirectory() as folder:
    copied = open_run(shutil.copytree(ssft.folder, Path(folder) / "copy"))
    findings = copied.folder / "findings.json"
    findings.chmod(0o644)
    findings.write_text(findings.read_text().replace('"supported"', '"contradicted"'))
    print(verify(copied).problems)

# %% [markdown]
# **What it does not show.** That the numbers are right, or who made them: the seal is a hash and no
# signature. It finds what was changed by accident, or by somebody who did not write a new manifest.
# Whether the numbers come out again is another question: `mechsafety replay RUN` runs the record's
# config once more in a fresh process, and names the first stage, row and tensor that differ.
