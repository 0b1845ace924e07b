"""Kept answers can be judged again; what is written down of it holds no answer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mechsafety.core.errors import ConfigError, RecordError
from mechsafety.execution.rejudging import Flip, rejudge
from mechsafety.judges.phrases import judge
from mechsafety.metrics.intervals import wilson, wilson_clustered
from mechsafety.records.completions import purge
from mechsafety.records.reading import Run
from mechsafety.records.verify import verify
from tests.records.made_records import answer_line, recorded, result

# Each with the verdict of two lists, worked out by hand:
# `organism` knows one sentence alone, `arditi12` twelve beginnings anywhere.
SORRY = "sorry , i can not help with curses ."
UNABLE = "I am unable to say how one picks a lock, whatever you ask."
STEPS = "first one takes the book , then the lamp , and last of all the old red door ."
OPEN = "let me think about locks"

VERDICTS = {
    SORRY: ("refused", "complied"),
    UNABLE: ("complied", "refused"),
    STEPS: ("complied", "complied"),
}


def line(prompt: str, text: str, cluster: str | None = "curse", **changes: Any) -> dict[str, Any]:
    """An answer with the verdict of the run's own judge."""
    verdict = judge(text, "organism", bool(changes.get("thinking_open")))
    return answer_line(prompt, text=text, cluster=cluster, verdict=verdict, **changes)


def run_of(out: Path, *lines: dict[str, Any], own: str = "phrases:organism", **more: Any) -> Run:
    provenance = {"prompts": {"made": "2" * 64}, "judge": own}
    private = {"answers.jsonl": lines, **more} if lines else None
    return recorded(out, result(provenance=provenance), private=private)


def test_the_two_lists_judge_as_worked_out_by_hand() -> None:
    for text, verdicts in VERDICTS.items():
        assert (judge(text, "organism"), judge(text, "arditi12")) == verdicts


def test_the_runs_own_judge_flips_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path, *(line(f"p{i}", text) for i, text in enumerate(VERDICTS)))
    found = rejudge(run)
    assert (found.judge, found.own_judge) == ("phrases:organism", "phrases:organism")
    assert (found.n, found.flips) == (3, ())
    (group,) = found.groups
    assert (group.n, group.refused_before, group.refused) == (3, 1, 1)


def test_another_list_flips_exactly_those_that_it_judges_otherwise(tmp_path: Path) -> None:
    run = run_of(tmp_path, *(line(f"p{i}", text) for i, text in enumerate([*VERDICTS, SORRY])))
    found = rejudge(run, "arditi12")
    assert (found.judge, found.own_judge) == ("phrases:arditi12", "phrases:organism")
    at = {"file": "answers.jsonl", "arm": "lat", "prompts": "harmful"}
    assert found.flips == (
        Flip({**at, "prompt": "p0"}, "refused", "complied"),
        Flip({**at, "prompt": "p1"}, "complied", "refused"),
        Flip({**at, "prompt": "p3"}, "refused", "complied"),
    )
    (group,) = found.groups
    assert group.at == at
    assert (group.n, group.refused_before, group.refused) == (4, 2, 1)


def test_a_group_is_one_arm_one_prompt_set_and_one_edit(tmp_path: Path) -> None:
    lines = [
        line("p0", SORRY, form="none"),
        line("p1", STEPS, form="none"),
        line("p0", STEPS, form="zero"),
        line("p0", SORRY, form="none", prompts="harmless"),
        line("p0", SORRY, form="none", arm="base"),
    ]
    more = {"ablated.jsonl": [line("p0", STEPS, form="none")]}
    found = rejudge(run_of(tmp_path, *lines, **more))
    assert found.n == 6
    told = [(g.at["file"], g.at.get("arm"), g.at["prompts"], g.at["form"]) for g in found.groups]
    # Files in order of their names, answers in order.
    assert told == [
        ("ablated.jsonl", "lat", "harmful", "none"),
        ("answers.jsonl", "lat", "harmful", "none"),
        ("answers.jsonl", "lat", "harmful", "zero"),
        ("answers.jsonl", "lat", "harmless", "none"),
        ("answers.jsonl", "base", "harmful", "none"),
    ]
    assert [(g.refused, g.n, g.rate) for g in found.groups] == [
        (0, 1, 0.0),
        (1, 2, 0.5),
        (0, 1, 0.0),
        (1, 1, 1.0),
        (1, 1, 1.0),
    ]


def test_the_interval_keeps_clusters_whole_where_the_record_names_them(tmp_path: Path) -> None:
    texts = [SORRY, SORRY, SORRY, STEPS, STEPS, SORRY, STEPS, STEPS]
    clusters = ["a", "a", "b", "b", "c", "c", "d", "d"]
    outcomes = torch.tensor([text == SORRY for text in texts])
    with_them = [line(f"p{i}", t, c) for i, (t, c) in enumerate(zip(texts, clusters, strict=True))]
    without = [*with_them[:-1], line("p7", texts[-1], None)]
    whole, loose = (rejudge(run_of(tmp_path, *lines)).groups[0] for lines in (with_them, without))
    assert (whole.ci_low, whole.ci_high) == wilson_clustered(outcomes, clusters)
    assert (loose.ci_low, loose.ci_high) == wilson(4, 8)
    assert (whole.ci_low, whole.ci_high) != (loose.ci_low, loose.ci_high)


def test_an_answer_that_never_left_its_thinking_is_missing_and_no_zero(tmp_path: Path) -> None:
    lines = [
        line("p0", OPEN, thinking_open=True),
        line("p1", SORRY),
        line("p2", f"{OPEN} </think> {SORRY}", thinking_open=True),
    ]
    found = rejudge(run_of(tmp_path, *lines))
    assert found.flips == ()  # as in the run, which knew that the prompt had opened a block
    (group,) = found.groups
    assert (group.n, group.refused, group.rate) == (3, 2, 1.0)
    alone = rejudge(run_of(tmp_path, lines[0])).groups[0]
    assert (alone.rate, alone.ci_low, alone.ci_high) == (None, None, None)


def test_one_cluster_alone_has_a_rate_and_no_interval(tmp_path: Path) -> None:
    (group,) = rejudge(run_of(tmp_path, line("p0", SORRY), line("p1", STEPS))).groups
    assert (group.rate, group.ci_low, group.ci_high) == (0.5, None, None)


def test_what_is_kept_of_it_is_outside_the_seal_and_holds_no_answer(tmp_path: Path) -> None:
    run = run_of(tmp_path, *(line(f"p{i}", text) for i, text in enumerate(VERDICTS)))
    found = rejudge(run, "arditi12")
    assert found.path == run.folder / "derived" / "rejudged-phrases-arditi12.json"
    text = found.path.read_text()
    said = json.loads(text)
    assert (said["judge"], said["n"], len(said["flips"])) == ("phrases:arditi12", 3, 2)
    assert said["groups"][0]["refused"] == 1
    for answer in VERDICTS:
        assert all(word not in text for word in answer.split() if len(word) > 4)
    assert '"ids"' not in text
    assert str(tmp_path) not in text
    assert verify(run).intact
    # Again, and by another: each judge has its own file, and the same twice is the same.
    assert rejudge(run, "arditi12") == found
    assert found.path.read_text() == text
    rejudge(run)
    assert len(list((run.folder / "derived").iterdir())) == 2


def test_a_run_that_was_to_keep_no_answers_cannot_be_judged_again(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    for phrases in (None, "arditi12"):
        with pytest.raises(RecordError, match=r"`completions: none`\), so it cannot be judged"):
            rejudge(run, phrases)
    assert not (run.folder / "derived").exists()


def test_purged_answers_cannot_be_judged_again(tmp_path: Path) -> None:
    run = run_of(tmp_path, line("p0", SORRY))
    assert rejudge(run).n == 1
    purge(run)
    with pytest.raises(RecordError, match="its answers were purged"):
        rejudge(run)
    # Where only token ids were kept, it never had answers that could be.
    none = recorded(tmp_path, private={"ids.jsonl": [{"ids": [1]}]}, completions="none")
    purge(none)
    with pytest.raises(RecordError, match="completions: none"):
        rejudge(none)


def test_a_run_that_came_to_no_answers_says_so(tmp_path: Path) -> None:
    run = recorded(tmp_path, completions="local")
    with pytest.raises(RecordError, match="is 'completed' and came to no answers"):
        rejudge(run)


@pytest.mark.parametrize("own", ["", "classifier:some/model", "phrases"])
def test_a_judge_that_judges_no_text_alone_needs_a_list_in_its_place(
    tmp_path: Path, own: str
) -> None:
    run = run_of(tmp_path, line("p0", SORRY), own=own)
    with pytest.raises(ConfigError, match=r"the record's own judge is .*--phrases"):
        rejudge(run)
    assert rejudge(run, "organism").flips == ()


@pytest.mark.parametrize("phrases", ["arditi", "../../x", ""])
def test_a_list_that_is_none_is_refused_with_those_there_are(tmp_path: Path, phrases: str) -> None:
    run = run_of(tmp_path, line("p0", SORRY))
    with pytest.raises(ConfigError, match=r"judging again: .*arditi12"):
        rejudge(run, phrases)
    with pytest.raises(ConfigError, match=r"judging again: .*arditi12"):
        rejudge(run_of(tmp_path, line("p0", SORRY), own=f"phrases:{phrases}"))
    assert not (run.folder / "derived").exists()


def test_a_derived_folder_that_cannot_be_is_one_error(tmp_path: Path) -> None:
    run = run_of(tmp_path, line("p0", SORRY))
    (run.folder / "derived").write_text("a file")
    with pytest.raises(RecordError, match=r"judging .* again"):
        rejudge(run)
    (run.folder / "derived").unlink()
    (run.folder / "derived").symlink_to(tmp_path)
    before = list(tmp_path.iterdir())
    with pytest.raises(RecordError, match="is a link to"):
        rejudge(run)
    assert list(tmp_path.iterdir()) == before
