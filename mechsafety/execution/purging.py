"""Deleting what a run kept of a model's answers: in its folder, and in the stage cache."""

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
    names = purge_folder(run)
    jobs = [job.key for stage in run.manifest.stages for job in stage.jobs]
    # A run that was killed has told its events alone.
    told = [event.get("key") for event in run.events()]
    forget(key for key in (*jobs, *told) if key is not None)
    return names
