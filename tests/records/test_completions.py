"""Answers that a run kept are read as they were written, compared token by token, and deleted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mechsafety.core.errors import RecordError
from mechsafety.records.completions import (
    AnswersCompared,
    Completion,
    compare_answers,
    completions,
    purge,
)
from mechsafety.records.reading import Run, open_run
from mechsafety.records.store import RunWriter
from mechsafety.records.verify import verify
from tests.records.made_records import ENVIRONMENT, answer_line, config, recorded

ANSWERS = "answers.jsonl"


def answered(out: Path, *lines: Any, **files: Any) -> Run:
    return recorded(out, private={ANSWERS: lines, **files})


def rewritten(run: Run, content: bytes, name: str = ANSWERS) -> Run:
    path = run.folder / "private" / name
    path.chmod(0o600)
    path.write_bytes(content)
    return run


# --- reading -----------------------------------------------------------------------------------


def test_an_answer_is_read_as_it_was_kept(tmp_path: Path) -> None:
    line = answer_line("p1", form="affine", rank=2, strength=0.5, thinking_open=True)
    assert completions(answered(tmp_path, line)) == [
        Completion(
            file=ANSWERS,
            at=(
                ("arm", "lat"),
                ("prompts", "harmful"),
                ("prompt", "p1"),
                ("form", "affine"),
                ("rank", 2),
                ("strength", 0.5),
            ),
            text="sorry , i can not help with curses .",
            verdict="refused",
            ids=(5, 7, 9),
            thinking_open=True,
            max_new_tokens=12,
            cluster="curse",
        )
    ]


@pytest.mark.parametrize(
    "text",
    ["", "two\nlines\r\n", "a\u2028b", "a\x85b", "a\x0bb\x0cc\x1cd", "\u2029", "é 😀 \\n", "\0"],
)
def test_no_character_of_an_answer_ends_its_line(tmp_path: Path, text: str) -> None:
    kept = completions(answered(tmp_path, answer_line("p1", text=text), answer_line("p2")))
    assert [one.text for one in kept] == [text, "sorry , i can not help with curses ."]


def test_records_of_before_ids_were_kept_are_read_without(tmp_path: Path) -> None:
    line = {"arm": "lat", "prompt": "p1", "verdict": "refused", "text": "sorry"}
    (one,) = completions(answered(tmp_path, line))
    assert (one.ids, one.thinking_open, one.max_new_tokens, one.cluster) == (
        None,
        False,
        None,
        None,
    )
    assert one.at == (("arm", "lat"), ("prompt", "p1"))


def test_token_ids_of_prompts_are_not_answers(tmp_path: Path) -> None:
    ids = [{"arm": "lat", "prompt": f"p{i}", "ids": [1, 2]} for i in range(3)]
    run = answered(tmp_path, answer_line("p1"), **{"token_ids.jsonl": ids})
    assert {path.name for path in (run.folder / "private").iterdir()} == {
        ANSWERS,
        "token_ids.jsonl",
    }
    assert [dict(one.at)["prompt"] for one in completions(run)] == ["p1"]


def test_a_run_that_kept_nothing_has_no_answers(tmp_path: Path) -> None:
    assert completions(recorded(tmp_path)) == []
    assert completions(answered(tmp_path)) == []  # a file without a line


GOOD = json.dumps(answer_line("p1")).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (GOOD + GOOD[:40] + b"\n", 2),
        (GOOD + GOOD[:40], 1),  # the last line has no end
        (GOOD[:-1], 0),
        (b"\xff" + GOOD, 0),
        (b"[]\n", 1),
        (b"3\n", 1),
        (b"null\n", 1),
        (b"\n" + GOOD, 1),
        (GOOD.replace(b'"text"', b'"tezt"'), 1),
        (GOOD.replace(b'"verdict"', b'"verdikt"'), 1),
        (GOOD + GOOD.replace(b'"text"', b'"tezt"'), 2),
        (GOOD + b'{"prompt": "p2", "ids": [1]}\n', 2),
        (GOOD.replace(b'"verdict": "refused"', b'"verdict": null'), 1),
        (GOOD.replace(b"[5, 7, 9]", b"3"), 1),
        (GOOD.replace(b"[5, 7, 9]", b'["x"]'), 1),
    ],
)
def test_a_damaged_file_is_one_error_and_never_fewer_answers(
    tmp_path: Path, content: bytes, line: int
) -> None:
    run = rewritten(answered(tmp_path, answer_line("p1")), content)
    with pytest.raises(RecordError, match=rf"answers\.jsonl, line {line}: it is damaged.*verify"):
        completions(run)


def test_so_it_is_where_nothing_checks_types_as_tests_do(tmp_path: Path) -> None:
    run = rewritten(
        answered(tmp_path, answer_line("p1")),
        GOOD.replace(b'"verdict": "refused"', b'"verdict": null'),
    )
    code = (
        "import sys; from mechsafety.records.reading import open_run\n"
        "from mechsafety.records.completions import completions\n"
        "completions(open_run(sys.argv[1]))\n"
    )
    read = subprocess.run(
        [sys.executable, "-c", code, str(run.folder)], capture_output=True, text=True
    )
    assert "RecordError" in read.stderr.splitlines()[-1]


def test_a_file_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    run = answered(tmp_path, answer_line("p1"))
    (run.folder / "private" / "folder.jsonl").mkdir()
    with pytest.raises(RecordError, match=r"folder\.jsonl, line 0"):
        completions(run)


# --- comparing ---------------------------------------------------------------------------------


def compared(out: Path, before: Any, now: Any) -> AnswersCompared:
    found = compare_answers(answered(out, *before), answered(out, *now))
    assert found is not None
    return found


def test_equal_answers_do_not_differ(tmp_path: Path) -> None:
    lines = [answer_line("p1"), answer_line("p2", verdict="complied")]
    found = compared(tmp_path, lines, lines[::-1])
    assert (found.n, found.only_in_one, found.diverged, found.differ) == (2, 0, (), False)


@pytest.mark.parametrize(
    ("changes", "token", "flipped"),
    [
        ({"ids": [5, 7, 8], "text": "sorry , i can not help with rain ."}, 2, False),
        ({"ids": [6, 7, 9], "text": "of course", "verdict": "complied"}, 0, True),
        ({"ids": [5, 7], "text": "sorry"}, 2, False),  # one is the beginning of the other
        ({"ids": [5, 7, 9, 9], "text": "sorry sorry"}, 3, False),
        ({"ids": []}, 0, False),
        # The same tokens, judged otherwise or written otherwise: they part nowhere.
        ({"verdict": "complied"}, None, True),
        ({"text": "Sorry"}, None, False),
    ],
)
def test_where_answers_part_is_their_first_new_token_that_differs(
    tmp_path: Path, changes: dict[str, Any], token: int | None, flipped: bool
) -> None:
    both = answer_line("p2")
    found = compared(tmp_path, [answer_line("p1"), both], [answer_line("p1", **changes), both])
    assert (found.n, found.only_in_one, found.differ) == (2, 0, True)
    (one,) = found.diverged
    assert (one.token, one.flipped) == (token, flipped)
    assert one.at == {"file": ANSWERS, "arm": "lat", "prompts": "harmful", "prompt": "p1"}
    assert found.flips == ((one,) if flipped else ())


def test_answers_to_other_edits_are_other_answers(tmp_path: Path) -> None:
    zero, affine = (answer_line("p1", form=form) for form in ("zero", "affine"))
    found = compared(tmp_path, [zero], [affine])
    assert (found.n, found.only_in_one, found.differ) == (0, 2, True)


def test_answers_of_equal_description_are_told_apart_by_their_order(tmp_path: Path) -> None:
    first, second = answer_line("p1"), answer_line("p1", ids=[1], text="other")
    found = compared(tmp_path, [first, second], [answer_line("p1", ids=[2], text="third"), second])
    assert (found.n, len(found.diverged)) == (2, 1)
    assert compared(tmp_path, [first, second], [first]).only_in_one == 1


def test_the_order_of_keys_and_lists_among_them_tell_no_answer_apart(tmp_path: Path) -> None:
    line = answer_line("p1", layers=[1, 2])
    turned = dict(reversed(line.items()))
    assert not compared(tmp_path, [line], [turned]).differ
    assert compared(tmp_path, [line], [answer_line("p1", layers=[1, 3])]).only_in_one == 2


def test_texts_are_compared_where_one_record_is_of_before_ids(tmp_path: Path) -> None:
    old = answer_line("p1")
    del old["ids"]
    assert not compared(tmp_path, [old], [answer_line("p1")]).differ
    (one,) = compared(tmp_path, [old], [answer_line("p1", text="of course")]).diverged
    assert one.token is None


def test_answers_are_compared_where_both_records_were_to_keep_them(tmp_path: Path) -> None:
    kept, none = answered(tmp_path, answer_line("p1")), recorded(tmp_path)
    assert compare_answers(kept, none) is None
    assert compare_answers(none, kept) is None
    # A replay that lost them all is not one that was to keep none.
    lost = compare_answers(kept, recorded(tmp_path, completions="local"))
    assert lost is not None
    assert lost.only_in_one == 1


def test_a_run_that_answered_again_after_a_purge_is_compared_again(tmp_path: Path) -> None:
    before, now = (answered(tmp_path, answer_line("p1")) for _ in range(2))
    purge(now)
    assert compare_answers(before, now) is None
    (now.folder / "private").mkdir()
    rewritten_line = json.dumps(answer_line("p1")) + "\n"
    (now.folder / "private" / ANSWERS).write_text(rewritten_line)
    found = compare_answers(before, now)
    assert found is not None
    assert not found.differ


# --- purging -----------------------------------------------------------------------------------


def test_purging_deletes_private_files_alone_and_the_record_stays_intact(tmp_path: Path) -> None:
    run = recorded(tmp_path, private={ANSWERS: [answer_line("p1")], "ids.jsonl": [{"ids": [1]}]})
    (run.folder / "derived").mkdir()
    (run.folder / "derived" / "page.html").write_text("<p>page</p>")
    names = [f"private/{name}" for name in (ANSWERS, "ids.jsonl")]
    before = {path for path in run.folder.rglob("*") if path.is_file()}
    assert completions(run)
    assert verify(run).purged == ()
    assert purge(run) == names
    assert not (run.folder / "private").exists()
    after = {path for path in run.folder.rglob("*") if path.is_file()}
    assert before - after == {run.folder / name for name in names}
    assert after - before == {run.folder / "derived" / "purged.json"}
    found = verify(open_run(run.folder))
    assert found.intact
    assert list(found.purged) == names
    assert completions(run) == []


def test_when_and_what_was_purged_is_recorded(tmp_path: Path) -> None:
    run = answered(tmp_path, answer_line("p1"))
    purge(run)
    text = (run.folder / "derived" / "purged.json").read_text()
    said = json.loads(text)
    assert said["files"] == [f"private/{ANSWERS}"]
    assert said["time"].startswith("20")
    assert "curses" not in text


def test_purging_again_changes_nothing(tmp_path: Path) -> None:
    run = answered(tmp_path, answer_line("p1"))
    purge(run)
    said = (run.folder / "derived" / "purged.json").read_bytes()
    assert purge(run) == []
    assert (run.folder / "derived" / "purged.json").read_bytes() == said
    assert purge(recorded(tmp_path)) == []
    assert not (recorded(tmp_path).folder / "derived").exists()


def test_a_run_that_is_being_written_is_not_purged(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path, config(completions="local"), ENVIRONMENT, ["mechsafety"])
    writer.write_private(ANSWERS, GOOD)
    opened = open_run(writer.folder)
    with pytest.raises(RecordError, match=r"still being written\. Wait"):
        purge(opened)
    assert completions(opened)
    writer.close("interrupted", KeyboardInterrupt())
    stale = open_run(writer.folder)
    # Resumed by another process after it was opened here.
    again = RunWriter.resume(stale, ENVIRONMENT, ["mechsafety"])
    again.write_private(ANSWERS, GOOD)
    with pytest.raises(RecordError, match="still being written"):
        purge(stale)
    again.close("failed", ValueError("x"))
    assert purge(stale) == [f"private/{ANSWERS}"]


@pytest.mark.parametrize("name", ["private", "derived"])
def test_a_link_is_not_followed_out_of_the_record(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    run = answered(tmp_path / "runs", answer_line("p1"))
    if name == "private":
        (run.folder / "private").rename(tmp_path / "moved")
    (run.folder / name).symlink_to(mine)
    with pytest.raises(RecordError, match="is a link to"):
        purge(run)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]


def test_links_in_the_private_folder_go_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    run = answered(tmp_path / "runs", answer_line("p1"))
    (run.folder / "private" / "folder").symlink_to(mine)
    (run.folder / "private" / "file").symlink_to(mine / "thesis.tex")
    (run.folder / "private" / "broken").symlink_to(mine / "nowhere")
    (run.folder / "private" / "empty").mkdir()
    purge(run)
    assert not (run.folder / "private").exists()
    assert (mine / "thesis.tex").read_text() == "years of work"


def test_a_folder_that_cannot_be_written_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = answered(tmp_path, answer_line("p1"))

    def refused(*given: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refused)
        with pytest.raises(RecordError, match=r"purging .*Permission denied"):
            purge(run)
    assert completions(run)
    assert purge(run) == [f"private/{ANSWERS}"]
