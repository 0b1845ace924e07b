"""What the findings of the study call their models and intervals."""

from mechsafety.studies.comparing.geometry import Likeness


def names(one: Likeness) -> str:
    """Two models, and how the first's direction came into the second's space."""
    how = "" if one.via == "none" else f", carried by {one.via}"
    return f"{one.first} with {one.second}{how}"


def left_out(n_groups: int) -> str:
    """What an interval of likeness rests on."""
    return f"The interval leaves out {n_groups} groups of prompts in turn."
