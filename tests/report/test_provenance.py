from mechsafety.report.provenance import commands, differences, flatten, sections, stage_bars
from tests.report.fake_record import record, second_record

MANIFEST = record().manifest


def test_nested_settings_are_told_with_their_path() -> None:
    nested = {"a": {"b": [1, 2.0], "c": [{"d": True}]}, "e": None, "f": "", "g": []}
    assert list(flatten(nested)) == [("a.b", "1, 2"), ("a.c[0].d", "true")]


def test_everything_that_decides_a_run_is_told() -> None:
    told = {section.title: dict(section.rows) for section in sections(MANIFEST)}
    assert told["Configuration, filled in"]["spectra.splits"] == "50"
    assert told["Seeds"] == {"seed": "0", "spectra": "1234", "null": "98765"}
    assert told["Code"]["git commit"] == MANIFEST.environment.git.commit
    assert told["Code"]["uncommitted changes"] == "2 lines, in manifest.json"
    assert told["Machine"]["threads: OMP_NUM_THREADS"] == "1"
    assert told["Hashes (SHA-256)"]["file metrics.parquet"] == "77" * 32
    assert told["Prompts, tokens, weights, templates"]["base.weights"] == "ab12" * 16
    assert told["Packages"]["torch"] == "2.13.0"


def test_stages_lie_on_one_line_of_time() -> None:
    bars = stage_bars(MANIFEST)
    assert bars[0].left > 0
    assert [bar.left for bar in bars] == sorted(bar.left for bar in bars)
    assert max(bar.left + bar.width for bar in bars) == 100
    assert bars[0].memory == "0.50 GiB"
    assert [bar.jobs for bar in bars[:3]] == ["2 jobs, 1 done before", "1 job", ""]


def test_the_commands_name_the_commit_the_changes_and_the_run() -> None:
    assert commands(MANIFEST) == [
        f"git checkout {MANIFEST.environment.git.commit}",
        "# uncommitted changes: apply environment.git.diff of manifest.json",
        "make install",
        "mechsafety replay 20260301T101500Z-3fa91c77",
    ]
    strange = MANIFEST.model_copy(update={"run": "a; rm -r b"})
    assert commands(strange)[-1] == "mechsafety replay 'a; rm -r b'"


def test_only_settings_that_differ_are_compared() -> None:
    assert differences([MANIFEST, second_record().manifest]) == [("seed", ["0", "1"])]
    assert differences([MANIFEST, MANIFEST]) == []
