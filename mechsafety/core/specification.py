"""Specification curves: does a verdict survive the choices that a reader would also accept?

Source: Simonsohn, Simmons & Nelson 2020, "Specification curve analysis",
doi:10.1038/s41562-020-0912-z; see evidence.md 10.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mechsafety.core.errors import SelfCheckError
from mechsafety.core.result import SpecificationCurve, verdict


@dataclass(frozen=True, slots=True)
class Choice:
    """One legal way to analyze the same data, with the effect that it gives."""

    settings: Mapping[str, str]
    """What was chosen, such as `{"centering": "uncentered", "layer": "2"}`."""
    value: float
    ci_low: float
    ci_high: float
    null: tuple[float, float] | None = None
    """Range of the effect under the null of the same choice, where it was drawn."""

    def label(self) -> str:
        """The settings in one line."""
        return ", ".join(f"{key}={value}" for key, value in sorted(self.settings.items()))


def specification_curve(
    choices: Sequence[Choice], primary: Mapping[str, str], margin: float
) -> SpecificationCurve:
    """How many of `choices` support the claim, and which single change flips the primary verdict.

    A choice flips the finding if it differs from `primary` in exactly one setting and its verdict
    differs from the primary one.

    Raises:
        SelfCheckError: The primary cell is not among the choices.
    """
    verdicts = [verdict(c.value, c.ci_low, c.ci_high, margin, c.null) for c in choices]
    found = [v for c, v in zip(choices, verdicts, strict=True) if dict(c.settings) == dict(primary)]
    if not found:
        raise SelfCheckError(
            f"specification curve: the primary cell {dict(primary)} is not among the "
            f"{len(choices)} choices that were measured."
        )
    flips = tuple(
        f"{_changed(c.settings, primary)[0]} → {v}"
        for c, v in zip(choices, verdicts, strict=True)
        if len(_changed(c.settings, primary)) == 1 and v != found[0]
    )
    by_effect = sorted(choices, key=lambda c: c.value)
    return SpecificationCurve(
        supported=sum(v == "supported" for v in verdicts),
        total=len(choices),
        flips=flips,
        values=tuple((c.label(), c.value) for c in by_effect),
    )


def _changed(settings: Mapping[str, str], primary: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items() if primary.get(key) != value]
