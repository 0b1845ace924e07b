"""Layers by rule, so that one YAML fits models of any depth."""

import re
from typing import Annotated

from pydantic import AfterValidator, StrictInt, WithJsonSchema

from mechsafety.core.errors import ConfigError, SiteError

_RULE = re.compile(r"attacked([+-]\d+)?|depth:(0?\.\d+|0|1(\.0*)?)|\d+")


def _checked(rule: str | int) -> str | int:
    if not _RULE.fullmatch(str(rule)):
        raise ValueError(
            f"'{rule}' is no layer rule: write a number, 'attacked', 'attacked+1', or 'depth:0.4'"
        )
    return rule


LayerRule = Annotated[
    str | StrictInt,
    AfterValidator(_checked),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": f"^({_RULE.pattern})$"},
            ]
        }
    ),
]
"""A layer: `3`, `attacked` (where training perturbed it), `attacked+1`, or `depth:0.4`.

`depth:f` is the layer nearest to the fraction f of the way through the stack.
"""


def resolve_layer(rule: LayerRule, n_layers: int, attacked: int | None) -> int:
    """The layer that `rule` names in a stack of `n_layers` blocks.

    Layer `n_layers` is allowed: it names the final residual stream, after the last block.

    Raises:
        ConfigError: The rule refers to an attacked layer and there is none.
        SiteError: The layer is not in the model.
    """
    text = str(rule)
    if text.startswith("depth:"):
        layer = round(float(text.removeprefix("depth:")) * n_layers)
    elif text.startswith("attacked"):
        if attacked is None:
            raise ConfigError(
                f"layer rule '{text}': no arm of this run says which layer its training attacked. "
                "Give an arm `attacked_layer`, or name the layer by number or as 'depth:0.4'."
            )
        layer = attacked + int(text.removeprefix("attacked") or 0)
    else:
        layer = int(text)
    if not 0 <= layer <= n_layers:
        raise SiteError(
            f"layer rule '{text}' gives layer {layer}, but the model has {n_layers} layers, "
            f"counted 0 to {n_layers - 1} ({n_layers} names the stream after the last)."
        )
    return layer
