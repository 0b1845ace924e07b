"""Deleting what a run kept of a model's answers: in its folder, and in the stage cache."""

from mechsafety.core.errors import RecordError
from mechsafety.execution.stage_cache import forget
from mechsafety.records.completions import purge as purge_folder
from mechsafety.records.reading import Run


def purge(run: Run) -> list[str]:
    """Delete the run's `private/` and its results in the stage cache; names of its private files.

    Results of jobs hold answers and the tokens of prompts. The record stays intact; a run that
    did not complete begins anew where it is resumed.

    Raises:
        RecordError: The run is still being written, or its folder cannot be.
    """
    keys: list[object] = [job.key for stage in run.manifest.stages for job in stage.jobs]
    damaged: RecordError | None = None
    try:
        # A run that was killed has told its events alone.
        keys += [event.get("key") for event in run.events()]
    except RecordError as error:
        damaged = error
    names = purge_folder(run)
    forget(keys)
    if damaged is not None:
        raise RecordError(
            f"purging {run.folder}: its own files are deleted, and results in the cache as far as "
            f"the manifest names them; of others nothing is known: {damaged}"
        )
    return names
