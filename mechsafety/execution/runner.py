"""From an experiment's YAML to a finished run folder."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mechsafety.core.config import StudyConfig, apply_overrides, parse_config, read_yaml
from mechsafety.core.errors import ConfigError, InputError, RecordError, nearest, printable
from mechsafety.core.progress import say
from mechsafety.execution.citing import bibliography, citations
from mechsafety.execution.context import RunContext
from mechsafety.execution.environment import environment
from mechsafety.execution.signals import interruptible, uninterruptible
from mechsafety.execution.stage_cache import StageCache, fingerprint, prune
from mechsafety.execution.studies import Study, load_study, study_names
from mechsafety.execution.threads import threads
from mechsafety.execution.wandb_mirror import mirror
from mechsafety.models.spec import ModelSpec
from mechsafety.organisms.recipes import Organism
from mechsafety.records.reading import Run
from mechsafety.records.schema import Status, declared_findings, values_in
from mechsafety.records.store import RunWriter


@dataclass(frozen=True, slots=True)
class Plan:
    """An experiment that was read and checked, before anything is made or computed."""

    study: Study
    config: StudyConfig
    """Filled in."""
    experiment: Path | None
    """The YAML it came from."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one run ended; its folder can be read whatever the status."""

    folder: Path
    status: Status
    error: BaseException | None
    """What ended a run that did not complete."""


def plan_experiment(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """Read and check an experiment; nothing is written.

    Args:
        overrides: `a.b=value`, applied to the YAML's keys before they are checked.

    Raises:
        ConfigError: The file, a key, a value or an override is wrong; says which.
    """
    raw = apply_overrides(read_yaml(path), overrides)
    if "study" not in raw:
        strays = [key for key in raw if nearest(key, ["study"])]
        slip = f"unknown key '{printable(strays[0])}'. Did you mean 'study'? " if strays else ""
        raise ConfigError(
            f"{path}: {slip}key 'study' is missing. It names what the experiment configures, one "
            f"of: {', '.join(study_names())}."
        )
    try:
        study = load_study(raw["study"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return check_plan(Plan(study, parse_config(study.config, raw, str(path)), path))


def check_plan(plan: Plan) -> Plan:
    """The plan, if the findings that it declares can be told apart and its methods be cited.

    Raises:
        ConfigError: Two findings have one id, or there is no such organism.
        RecordError: A method names a source that the bibliography lacks.
    """
    bibliography(citations(plan.config, {}))
    for name in _model_ids(plan.config):
        if Organism.is_name(name):
            Organism.parse(name)
    ids = [finding.id for finding in declared_findings(plan.config)]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ConfigError(
            f"{plan.experiment or plan.study.name}: finding '{twice[0]}' is declared twice. Each "
            "finding has an id of its own."
        )
    return plan


def run_experiment(path: Path, overrides: Sequence[str] = (), out: Path = Path("runs")) -> Path:
    """Run an experiment and return its folder.

    Raises:
        InputError: Bad input; nothing was computed from it.
        Exception: Whatever ended the run; the folder holds what was recorded until then.
    """
    outcome = execute(plan_experiment(path, overrides), out)
    if outcome.error is not None:
        raise outcome.error
    return outcome.folder


def build_organisms(plans: Sequence[Plan]) -> None:
    """Train what the experiments ask and the cache lacks, all side by side, before the first."""
    from mechsafety.organisms.building import build

    names = dict.fromkeys(name for plan in plans for name in _model_ids(plan.config))
    organisms = [name for name in names if Organism.is_name(name)]
    if organisms:
        build(organisms, workers=max(2, *(plan.config.runtime.workers for plan in plans)))


def _model_ids(config: StudyConfig) -> Iterator[str]:
    """Every model that the settings name, however deep."""
    return (value.id for value in values_in(config) if isinstance(value, ModelSpec))


def mirror_or_warn(folder: Path) -> None:
    """Mirror a record; what went wrong there is a warning."""
    if warning := mirror(folder):
        say(f"warning: {warning}")


@dataclass(frozen=True, slots=True)
class How:
    """How a plan is carried out, beside what it says itself."""

    command_line: Sequence[str] = ()
    """For the record; this process's where empty."""
    mirrored: Callable[[Path], object] = mirror_or_warn
    """Given the closed record, such as to mirror it while something else runs."""
    cached: bool = True
    """Whether finished work of earlier runs is taken from the cache, and this run's is kept."""
    resume: Run | None = None
    """The run to go on with, in its own folder."""
    replay_of: Run | None = None
    """The record that this run replays: it stops where its prompts are not the record's."""


def execute(plan: Plan, out: Path, how: How | None = None) -> Outcome:
    """Carry out a plan in a folder below `out`, and mirror the record.

    An error of the study ends the run, not the caller: it is recorded and returned.

    Raises:
        RecordError: The record cannot be opened or closed. Without a record nothing runs.
    """
    how = how or How()
    with threads(plan.config.runtime.threads), interruptible():
        writer = _opened(plan, out, how)
        say(f"recording into {writer.folder}")
        error: BaseException | None = None
        status: Status = "completed"
        forget_answers: Callable[[], None] = _nothing
        try:
            forget_answers = _work(plan, writer, how)
        except KeyboardInterrupt as interruption:
            status, error = "interrupted", interruption
        except (Exception, SystemExit) as failure:
            status, error = "failed", failure
        with uninterruptible():
            try:
                writer.close(status, error)
            except RecordError as unwritten:
                # What ended the run is otherwise lost with the record that should name it.
                raise unwritten from error
    if how.cached:
        # Not before: a run that is killed while it closes finds all that it had finished.
        _tidy_cache(forget_answers)
    if status != "interrupted":
        how.mirrored(writer.folder)
    return Outcome(writer.folder, status, error)


def _nothing() -> None:
    """What is left to do for a run that did not complete: its answers are for its resuming."""


def _tidy_cache(forget_answers: Callable[[], None]) -> None:
    try:
        forget_answers()
        prune()
    except InputError as error:
        say(f"warning: {error}")


def _opened(plan: Plan, out: Path, how: How) -> RunWriter:
    command_line = how.command_line or sys.argv
    if how.resume is not None:
        return RunWriter.resume(how.resume, environment(), command_line)
    return RunWriter.create(
        out, plan.config, environment(), command_line, plan.experiment, how.replay_of
    )


def _work(plan: Plan, writer: RunWriter, how: How) -> Callable[[], None]:
    """Run the study into the record; what is to be done when that is closed."""
    cache = StageCache(fingerprint(writer.manifest.environment)) if how.cached else None
    expected = None if how.replay_of is None else how.replay_of.manifest.provenance.get("prompts")
    with RunContext(plan.config, writer, cache, expected) as context:
        try:
            result = plan.study(plan.config, context)
            with context.stage("record"):
                writer.write_result(result)
        finally:
            cited = citations(plan.config, context.models)
            writer.note_use(
                seeds=context.seeds,
                models=context.models,
                stages=context.stages,
                sources=cited,
            )
            writer.write_citations(bibliography(cited))
        writer.event("rendering")
        writer.write_report(_page(writer))
        return context.forget_answers


def plan_of(run: Run) -> Plan:
    """The plan by which a run was made, from its record.

    Raises:
        ConfigError: Its study or its settings are not what this version of the code has.
    """
    manifest = run.manifest
    study = load_study(manifest.study)
    where = f"the config recorded in {run.folder}"
    experiment = None if manifest.experiment is None else Path(manifest.experiment)
    return check_plan(Plan(study, parse_config(study.config, manifest.config, where), experiment))


def _page(writer: RunWriter) -> str:
    from mechsafety.report.page import from_run, render

    # The page is sealed with the run it shows, so it is drawn as of a completed one.
    as_completed = writer.manifest.model_copy(
        update={"status": "completed", "seconds": round(writer.seconds, 3)}
    )
    return render([from_run(Run(writer.folder, as_completed))])
