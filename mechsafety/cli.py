"""The command line. Nothing heavy is imported before a command starts its work."""

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

P = ParamSpec("P")

app = typer.Typer(
    name="mechsafety",
    help="How do language models represent refusal, and what does safety training do to it?",
    no_args_is_help=True,
    add_completion=False,
    # Plain help needs no rich, and a run's own tracebacks are shown as Python shows them.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
organisms_app = typer.Typer(
    help="Tiny models with known behavior, trained here.", no_args_is_help=True
)
app.add_typer(organisms_app, name="organisms")
wandb_app = typer.Typer(help="The mirror of a record.", no_args_is_help=True)
app.add_typer(wandb_app, name="wandb")

Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable line, last.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Out = Annotated[Path, typer.Option("--out", help="Folder that holds the run folders.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]

DONE, FAILED, BAD_INPUT = 0, 1, 2


def main() -> None:
    """Entry point of the `mechsafety` command."""
    app()


def _command(body: Callable[P, int]) -> Callable[P, None]:
    """End a command with its exit code; an error is one message on stderr, never a traceback."""

    @functools.wraps(body)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = body(*args, **kwargs)
        except (typer.Exit, typer.BadParameter):
            raise
        except BrokenPipeError:
            # The reader has enough, as `head` has: nothing is wrong, and nobody hears more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 128 + signal.SIGPIPE
        except KeyboardInterrupt as error:
            from mechsafety.execution.signals import exit_code

            print("interrupted", file=sys.stderr)
            code = exit_code(error)
        except Exception as error:
            code = _report_error(error, debug=bool(kwargs.get("debug")))
            if kwargs.get("as_json"):
                _emit({"status": "error", "error": str(error), "kind": type(error).__name__})
        raise typer.Exit(code)

    return command


def _report_error(error: BaseException, debug: bool) -> int:
    from mechsafety.core.errors import InputError, MechsafetyError

    if debug:
        import traceback

        traceback.print_exception(error)
    # An error of another family was not written for readers: its class is part of the message.
    told = str(error) if isinstance(error, MechsafetyError) else f"{type(error).__name__}: {error}"
    print(f"error: {told}", file=sys.stderr)
    return BAD_INPUT if isinstance(error, InputError) else FAILED


def _emit(value: Any) -> None:
    print(json.dumps(value, default=str), flush=True)


@app.command()
@_command
def run(
    experiments: Annotated[
        list[Path] | None,
        typer.Argument(metavar="EXPERIMENT.yaml...", help="What to run, in order."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="a.b=value", help="Change a key; the value is YAML. May be repeated."
        ),
    ] = None,
    out: Out = Path("runs"),
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with a run that did not complete, in its folder."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Compute everything, even what was done before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the filled-in config and make nothing.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Run experiments, each into a run folder with a report."""
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial

    from mechsafety.execution.describing import describe_findings, summary_json
    from mechsafety.execution.runner import (
        How,
        build_organisms,
        execute,
        mirror_or_warn,
        plan_experiment,
        plan_of,
    )
    from mechsafety.execution.signals import exit_code
    from mechsafety.records.reading import open_run

    resumed = None if resume is None else open_run(resume)
    if (resumed is None) == (not experiments) or (resumed is not None and overrides):
        raise typer.BadParameter(
            "give experiments, or --resume RUN alone: a run goes on with the config it began with."
        )
    # All are checked before the first starts: a typo in the last must not cost a night.
    plans = (
        [plan_experiment(path, overrides or ()) for path in experiments or ()]
        if resumed is None
        else [plan_of(resumed)]
    )
    if dry_run:
        return _show_plans(plans, out, as_json)
    code = DONE
    summaries: list[dict[str, Any]] = []
    if len(plans) > 1:
        build_organisms(plans)
    # A mirror takes one core for seconds; the next experiment need not wait for it.
    with ThreadPoolExecutor(max_workers=1) as mirrors:
        mirrored = partial(mirrors.submit, mirror_or_warn)
        how = How(sys.argv, mirrored, cached=not fresh, resume=resumed)
        for plan in plans:
            outcome = execute(plan, out, how)
            done = open_run(outcome.folder)
            summaries.append(summary_json(done))
            if outcome.status == "interrupted":
                print(
                    f"interrupted; `mechsafety run --resume {outcome.folder}` goes on",
                    file=sys.stderr,
                )
                code = exit_code(outcome.error)
                break
            if outcome.error is not None:
                code = max(code, _report_error(outcome.error, debug))
                print(f"the record of the failed run is in {outcome.folder}", file=sys.stderr)
            elif not as_json:
                print(describe_findings(done.findings))
                print(done.report)
    if as_json:
        _emit({"status": "done" if code == DONE else "failed", "runs": summaries})
    return code


def _show_plans(plans: list[Any], out: Path, as_json: bool) -> int:
    if as_json:
        configs = [plan.config.model_dump(mode="json") for plan in plans]
        _emit({"status": "dry run", "configs": configs})
        return DONE
    import yaml

    from mechsafety.records.schema import declared_findings

    for plan in plans:
        print(yaml.safe_dump(plan.config.model_dump(mode="json"), sort_keys=False).rstrip())
        print(f"# would run study '{plan.study.name}' into {out / plan.study.name}/")
        for finding in declared_findings(plan.config):
            print(f"# would test '{finding.id}': {finding.claim}")
    return DONE


@app.command()
@_command
def replay(
    run_folder: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder that holds the replay. Default: beside the record."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Run a record again and compare them.

    In a fresh process, with nothing from the cache. Exit codes: 0 same, 1 different, 2 cannot.
    """
    from dataclasses import asdict

    from mechsafety.execution.describing import describe_comparison
    from mechsafety.execution.replaying import replay as replay_run
    from mechsafety.records.reading import open_run

    done = replay_run(open_run(run_folder), out)
    if as_json:
        found = None if done.comparison is None else asdict(done.comparison)
        _emit({"same": done.same, "replay": done.folder, "error": done.error, "compared": found})
    elif done.comparison is None:
        print(f"the replay failed, as its record did not: {done.error}")
    else:
        print(describe_comparison(done.comparison))
    if not as_json:
        print(done.folder)
    return DONE if done.same else FAILED


@app.command()
@_command
def show(
    run_folder: RunFolder,
    full: Annotated[bool, typer.Option("--full", help="Every finding in words.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Show a run on one screen."""
    from mechsafety.execution.describing import describe, summary_json
    from mechsafety.records.reading import open_run

    opened = open_run(run_folder)
    if as_json:
        _emit(summary_json(opened))
    else:
        print(describe(opened, full))
    return DONE


@app.command()
@_command
def runs(
    study: Annotated[str | None, typer.Option(help="Only runs of this study.")] = None,
    status: Annotated[str | None, typer.Option(help="Only runs with this status.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Only runs of a model whose name contains this.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="Only runs opened on this day or later.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="DATE", help="Only runs opened on this day or earlier.")
    ] = None,
    out: Out = Path("runs"),
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """List runs, newest first."""
    import dataclasses

    from mechsafety.execution.describing import describe_runs
    from mechsafety.records.listing import Filter, list_runs

    found = list_runs(out, Filter(study, status, model, since, until))
    if as_json:
        _emit({"runs": [dataclasses.asdict(summary) for summary in found]})
    else:
        print(describe_runs(found))
    return DONE


@app.command()
@_command
def report(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: derived/ of the first run.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Render the page of one or several runs again.

    The sealed page stays as it is.
    """
    from mechsafety.records.landing import land
    from mechsafety.records.reading import open_run
    from mechsafety.records.schema import DERIVED, REPORT, own_folder
    from mechsafety.report.page import from_run, render

    opened = [open_run(folder) for folder in run_folders]
    path = output
    if path is None:
        path = own_folder(opened[0].folder, DERIVED) / REPORT
        path.parent.mkdir(exist_ok=True)
    land(path, render([from_run(one) for one in opened]).encode())
    if as_json:
        _emit({"report": str(path), "runs": [str(one.folder) for one in opened]})
    else:
        print(path)
    return DONE


@app.command()
@_command
def verify(run_folder: RunFolder, as_json: Json = False, debug: Debug = False) -> int:
    """Hash every file of a run again; name what differs."""
    from mechsafety.records.reading import open_run
    from mechsafety.records.verify import verify as verify_run

    found = verify_run(open_run(run_folder))
    if as_json:
        _emit({"intact": found.intact, "checked": found.checked, "problems": found.problems})
    else:
        for problem in found.problems:
            print(problem)
        for name in found.purged:
            print(f"{name}: purged")
        print(f"{found.checked} files checked: {'intact' if found.intact else 'NOT intact'}")
    return DONE if found.intact else FAILED


@app.command()
@_command
def rejudge(
    run_folder: RunFolder,
    phrases: Annotated[
        str | None, typer.Option(help="List of refusal phrases. Default: the run's own judge.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Judge kept answers again; list verdicts that flip."""
    from dataclasses import asdict

    from mechsafety.execution.describing import describe_rejudged
    from mechsafety.execution.rejudging import rejudge as rejudge_run
    from mechsafety.records.reading import open_run

    found = rejudge_run(open_run(run_folder), phrases)
    if as_json:
        _emit(asdict(found))
    else:
        print(describe_rejudged(found))
    return DONE


@app.command()
@_command
def purge(run_folder: RunFolder, as_json: Json = False, debug: Debug = False) -> int:
    """Delete kept answers and token ids.

    The record stays intact, and says so.
    """
    from mechsafety.execution.purging import purge as purge_run
    from mechsafety.records.reading import open_run

    names = purge_run(open_run(run_folder))
    if as_json:
        _emit({"purged": names})
    else:
        print("\n".join([*(f"{name}: deleted" for name in names), f"{len(names)} files purged"]))
    return DONE


@wandb_app.command("sync")
@_command
def wandb_sync(
    run_folder: RunFolder,
    mode: Annotated[
        str | None, typer.Option(help="offline or online; default: as the run.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Make the wandb mirror of a record anew."""
    from mechsafety.execution.wandb_mirror import sync

    done = sync(run_folder, mode)
    if done.warning:
        print(f"warning: {done.warning}", file=sys.stderr)
    if as_json:
        _emit({"mirror": done.folder, "mode": done.mode, "warning": done.warning})
    else:
        print(done.folder)
    return DONE


@app.command()
@_command
def schema(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Such as `concentration`.")],
    debug: Debug = False,
) -> int:
    """Print the JSON schema of a study's YAML, for editors."""
    from mechsafety.execution.schemas import study_schema

    _emit(study_schema(study))
    return DONE


@app.command()
@_command
def check(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder, organism, or org/name[@revision].")
    ],
    dtype: Annotated[str, typer.Option(help="Precision of the weights.")] = "float32",
    device: Annotated[str, typer.Option(help="torch device.")] = "cpu",
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Probe a model against its own forward pass.

    Do its sites, padding, BOS and chat template agree with it?
    """
    import dataclasses

    from mechsafety.execution.describing import describe_probes
    from mechsafety.models.probes import check_model
    from mechsafety.organisms.building import resolve
    from mechsafety.organisms.recipes import Organism

    source = resolve(model) if Organism.is_name(model) else model
    found = check_model(source, dtype=dtype, device=device)
    if as_json:
        probes = [dataclasses.asdict(probe) for probe in found.probes]
        _emit({"model": model, "passed": not found.failed, "probes": probes})
    else:
        print(describe_probes(found.probes))
    return FAILED if found.failed else DONE


@app.command("import")
@_command
def import_(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A .pt file, or a folder of them.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DST", help="The safetensors file to write.")
    ],
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Convert published .pt activations to safetensors.

    Nothing but tensors is ever loaded.
    """
    from mechsafety.activations.importing import import_activations

    done = import_activations(source, output)
    for note in done.notes:
        print(note, file=sys.stderr)
    if as_json:
        _emit({"destination": done.destination, "tensors": dict(done.tensors), "notes": done.notes})
    else:
        for name, shape in done.tensors.items():
            print(f"{name:<24} {list(shape)}")
        print(done.destination)
    return DONE


@organisms_app.command("build")
@_command
def organisms_build(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ORGANISM...]",
            help="Such as ssft or ssft@seed=1@size=wide (or deep). Default: the demo's.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Training seed of all.")] = None,
    preset: Annotated[str | None, typer.Option(help="World of all: default or small.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trained side by side, one thread each.")] = 2,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Train organisms that are not in the cache yet."""
    from mechsafety.organisms.building import build
    from mechsafety.organisms.recipes import DEFAULT_ARMS, DEMO, Organism

    options = ("" if seed is None else f"@seed={seed}") + (
        "" if preset is None else f"@preset={preset}"
    )
    unnamed = DEFAULT_ARMS if options else DEMO
    asked = [f"{name}{options}" for name in names or unnamed]
    for name in asked:
        Organism.parse(name)
    built = build(asked, workers=workers)
    if as_json:
        _emit({"organisms": {name: str(folder) for name, folder in built.items()}})
    else:
        for name, folder in built.items():
            print(f"{name:<16} {folder}")
    return DONE


@organisms_app.command("list")
@_command
def organisms_list(as_json: Json = False, debug: Debug = False) -> int:
    """List the organisms there are, and the folders of those that are built."""
    from mechsafety.execution.organisms import listed_organisms

    found = listed_organisms()
    if as_json:
        listed = [
            {
                "name": one.name,
                "folder": one.folder,
                "card": None if one.card is None else one.card.model_dump(mode="json"),
            }
            for one in found
        ]
        _emit({"organisms": listed})
    else:
        for one in found:
            print(f"{one.name:<28} {one.folder or 'not built'}")
    return DONE
