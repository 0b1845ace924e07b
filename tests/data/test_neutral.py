from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from mechsafety.core.errors import PromptError
from mechsafety.data.neutral import FileNeutral, NeutralSource, OrganismNeutral, split_neutral
from mechsafety.data.prompts import Prompt, PromptSet

N_GROUPS, ROWS_A_GROUP = 30, 5


def grouped() -> PromptSet:
    return PromptSet(
        "neutral",
        tuple(
            Prompt.of(f"describe thing {row} of {group}", group=f"topic {group}")
            for group in range(N_GROUPS)
            for row in range(ROWS_A_GROUP)
        ),
        "in memory",
    )


def test_a_source_is_chosen_by_its_name_and_keeps_its_defaults() -> None:
    read = TypeAdapter[OrganismNeutral | FileNeutral](NeutralSource).validate_python
    assert read({"source": "organism"}) == OrganismNeutral(n_fit=512, n_held_out=128)
    named = read({"source": "files", "prompts": "plain.csv[text]"})
    assert isinstance(named, FileNeutral)
    assert named.held_out == 0.2
    with pytest.raises(ValidationError, match=r"held_out"):
        read({"source": "files", "prompts": "plain.csv", "held_out": 1.0})


def test_a_file_is_read_with_its_column_limit_and_group(tmp_path: Path) -> None:
    file = tmp_path / "plain.csv"
    file.write_text("text,topic\ndraw a cat,pets\ndraw a dog,pets\nbake bread,food\n")
    read = FileNeutral(source="files", prompts=f"{file}[text]", n=2, group="topic").read()
    assert [p.instruction for p in read] == ["draw a cat", "draw a dog"]
    assert read.groups == ("pets", "pets")


def test_the_two_parts_hold_all_rows_and_share_no_group() -> None:
    prompts = grouped()
    fit, held_out = split_neutral(prompts, 0.3, seed=0)
    assert sorted(p.id for p in (*fit, *held_out)) == sorted(p.id for p in prompts)
    assert not set(fit.groups) & set(held_out.groups)
    assert len(held_out) == pytest.approx(0.3 * len(prompts), abs=ROWS_A_GROUP)
    assert split_neutral(prompts, 0.3, seed=0) == (fit, held_out)
    assert split_neutral(prompts, 0.3, seed=1) != (fit, held_out)


def test_one_text_in_two_groups_is_not_fitted_and_held_out_at_once() -> None:
    twice = [(f"paint scene {n}", f"{side} {n}") for n in range(40) for side in ("first", "second")]
    prompts = PromptSet("neutral", tuple(Prompt.of(t, group=g) for t, g in twice), "in memory")
    fit, held_out = split_neutral(prompts, 0.4, seed=0)
    assert len(fit) > 0 < len(held_out)
    assert not {p.id for p in fit} & {p.id for p in held_out}


def test_too_few_groups_are_refused_with_advice() -> None:
    one = PromptSet("neutral", tuple(Prompt.of(f"do {n}", group="all") for n in range(9)), "here")
    with pytest.raises(PromptError, match=r"at least three groups.*Give more prompts"):
        split_neutral(one, 0.2, seed=0)
