"""Planted models that several test files look at; what they share is known by construction."""

import math
from collections.abc import Mapping

import pytest

from mechsafety.studies.comparing.measured import Measured
from tests.studies.comparing.planted import Streams, drawn, isometry, measured, shift, streams
from tests.studies.similarity_runs import configured

ANGLE = 40.0
"""Degrees between the directions of `a` and `b`."""
MODELS = """{a: {model: ./a, seed: 0, training: ssft},
b: {model: ./b, base: a, seed: 0, training: lat},
far_b: {model: ./far_b, base: far, seed: 1, training: lat},
far: {model: ./far, seed: 1, training: ssft},
blind: {model: ./blind}}"""
BETWEEN = "maps.between=[[a, far], [a, blind]]"


def planted() -> Mapping[str, Streams]:
    """`far` and `far_b` are `a` and `b` in other, more coordinates; `blind` is `a` in others,
    whose neutral prompts do not vary along its direction."""
    harm = shift(1, size=6.0)
    other = drawn(*harm.shape, seed=2)
    other -= (other * harm).sum(1, keepdim=True) * harm / harm.square().sum(1)[:, None].clamp(min=1)
    other *= harm.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
    turned = math.cos(math.radians(ANGLE)) * harm + math.sin(math.radians(ANGLE)) * other
    a = streams(harm, shared=0.4, noise=1.0)
    b = streams(turned, shared=0.4, noise=1.0, seed=1)
    blind = streams(harm, shared=0.4, noise=1.0, blind=True)
    wide, other_wide = isometry(9, 3), isometry(8, 4)
    return {
        "a": a,
        "b": b,
        "far_b": b.turned(wide),
        "far": a.turned(wide),
        "blind": blind.turned(other_wide),
    }


@pytest.fixture(scope="session")
def world() -> Measured:
    """Five planted models, compared and mapped; nothing is transferred."""
    return measured(configured(MODELS, BETWEEN), planted())
