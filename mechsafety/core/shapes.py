"""The one glossary of axis words used in jaxtyping annotations, tables and figures.

The names are plain strings inside annotations such as `Float[Tensor, "batch pos d_model"]`;
a test checks that every axis word in the package is either here or a count `n_*`.
"""

from typing import Final

AXES: Final[dict[str, str]] = {
    "batch": "prompts that go through the model in one forward pass",
    "prompt": "prompts of a set, in the caller's order",
    "pair": "matched prompts: row i of both operands comes from the same pair",
    "row": "samples of any origin, where prompts and pairs are treated alike",
    "pos": "token positions of a padded batch",
    "kept": "the positions of a padded batch at which logits are computed",
    "kept_complying": "as `kept`, of the batch with complying answers",
    "kept_refusing": "as `kept`, of the batch with refusals",
    "position": "named positions that were read, in the order asked for",
    "layer": "blocks, counted from 0",
    "d_model": "width of the residual stream",
    "d_head": "width of one attention head's output before W_O",
    "d_mlp": "width of an MLP's hidden layer",
    "d": "width of whatever space the tensor lives in, where the maths does not care which",
    "head": "attention heads of one layer",
    "vocab": "tokens of the vocabulary",
    "component": "singular or principal components, strongest first",
    "k": "dimensions of a subspace, or the number of leading components kept",
    "side": "the classes of a contrast: harmful first, then harmless",
    "channel": "coordinates of the residual stream, where single coordinates matter",
    "draw": "draws of a null, of a control or of a resampling",
    "deal": "assignments of the rows to the two classes of a contrast",
    "split": "random halves of a cross-fit",
    "group": "groups of rows that are left out together",
    "token": "tokens in one flat list",
    "dose": "sizes at which a vector is added, in the order asked for",
    "cell": "cells of a map (layers, positions, windows), flattened",
}
