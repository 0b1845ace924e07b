from typing import Any

import pandas as pd
import pytest

from mechsafety.core.errors import RecordError
from mechsafety.report.drawing import Token
from mechsafety.report.figures import drawing
from mechsafety.report.tokens import tokens
from tests.report.fake_locality import LONG, LONG_TOKENS, PROMPT, TOKENS, record

METRICS = record().metrics


def test_tokens_stand_in_the_prompts_order_with_what_happens_there() -> None:
    shuffled = METRICS.sample(frac=1, random_state=3)
    rows = shuffled[(shuffled["table"] == "prompt") & (shuffled["prompt"] == "first")]
    assert list(rows["value"]) != sorted(rows["value"])  # there is an order to restore
    found = tokens(TOKENS, shuffled)
    assert tuple(token.text for token in found) == PROMPT
    assert found[1] == Token(1, "how", "instruction", "", "")
    assert found[4] == Token(4, "build", "instruction", "", "all")
    assert found[9] == Token(9, "<|end|>", "template", "eoi[-2]", "all")
    assert found[10].text == "\n"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ([True, False], ["true", ""]),
        (["True", "all"], ["true", "all"]),  # as a column of several kinds is stored
        (["False", None], ["", ""]),
    ],
)
def test_writing_may_be_a_truth_value_or_a_name(written: list[Any], said: list[str]) -> None:
    rows = METRICS[METRICS["prompt"] == "first"].head(2).assign(write=written)
    assert [token.write for token in tokens(TOKENS, rows)] == said


def test_a_prompt_that_is_only_text_needs_no_other_columns() -> None:
    bare = METRICS.drop(columns=["part", "read", "write"])
    assert tokens(TOKENS, bare)[9] == Token(9, "<|end|>", "", "", "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"where": {}}, r"11 places of the prompt have several tokens.*differ in: prompt\. Pick"),
        ({"x": "layer", "choose": ("prompt",)}, r"draws nothing else; leave out x, choose"),
        ({"table": None}, r"table or metric is missing"),
        ({"table": "sites", "metric": "kl", "where": {}}, r"no dimension 'token'"),
        ({"where": {"prompt": "third"}}, r"no rows of metric 'token' where"),
    ],
)
def test_a_description_that_is_no_prompt_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        tokens(TOKENS.model_copy(update=changes), METRICS)


@pytest.mark.parametrize("value", [None, 2.5])
def test_a_token_without_a_place_is_refused(value: float | None) -> None:
    rows = METRICS[METRICS["prompt"] == "first"].copy()
    rows.loc[rows["token"] == "red", "value"] = value
    with pytest.raises(RecordError, match=r"token 'red' has the value .*index in the prompt"):
        tokens(TOKENS, rows)


def test_a_prompt_beyond_the_page_is_cut_and_counted() -> None:
    drawn = drawing(LONG_TOKENS, METRICS, {}, max_points=300)
    assert [token.index for token in drawn.panels[""][0].tokens] == list(range(300))
    assert (drawn.points, drawn.total_points) == (300, LONG)


def test_repeated_rows_are_told_from_several_prompts() -> None:
    rows = METRICS[METRICS["prompt"] == "first"]
    with pytest.raises(RecordError, match=r"differ in: nothing \(rows are repeated\)"):
        tokens(TOKENS, pd.concat([rows, rows]))
