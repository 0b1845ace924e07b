"""What a reader must know where models were not read in one precision."""

from collections.abc import Iterable

from mechsafety.studies.arms import ArmView


def precision_notes(called: str, views: Iterable[tuple[str, ArmView]]) -> tuple[str, ...]:
    """A sentence for each of dtype and quantization in which the models differ.

    Args:
        called: What the study calls its models, in the plural.
        views: Each model by its name.
    """
    read = list(views)
    notes: list[str] = []
    for what in ("dtype", "quantization"):
        values = {name: view.identity.get(what, "unknown") for name, view in read}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            notes.append(f"The {called} differ in {what}: {listed}.")
    return tuple(notes)
