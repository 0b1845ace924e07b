"""Every number has a name of its own, and the Table is the one that wandb itself would make."""

from typing import Any

import pandas as pd
import pytest

from mechsafety.core.result import Table
from mechsafety.execution.wandb_tables import ONLY_IN_TABLE, metrics_table, scalars
from mechsafety.records.metrics_table import from_parquet, to_parquet


def frame(tmp_path: Any, *tables: Table) -> pd.DataFrame:
    path = tmp_path / "metrics.parquet"
    path.write_bytes(to_parquet(tables))
    return from_parquet(path)


def table(name: str, *rows: dict[str, Any]) -> Table:
    made = Table(name, "A caption.")
    for number, where in enumerate(rows):
        made.add("m", float(number), n=1, unit="u", **where)
    return made


def test_names_say_table_metric_and_every_dimension_that_a_row_has(tmp_path: Any) -> None:
    rows = ({"layer": 3, "form": "zero"}, {"layer": 4}, {"form": "a", "dose": 0.5, "top": True})
    assert scalars(frame(tmp_path, table("t", *rows))) == {
        "t/m/layer=3/form=zero": 0.0,
        "t/m/layer=4": 1.0,
        "t/m/form=a/dose=0.5/top=True": 2.0,
    }


def test_no_two_rows_have_one_name_whatever_their_words_are(tmp_path: Any) -> None:
    awkward = ("x/b=y", "x", "x%2Fb=y", "the", "the", "the/#2", "", "\n", "%0A", "#2", "the")
    rows = [{"a": word} for word in awkward] + [{"a": "x", "b": "y"}, {"b": "y"}]
    plain = [f"t/m/a={row.get('a')}/b={row.get('b')}".replace("/b=None", "") for row in rows]
    assert len(set(plain)) < len(rows)  # written as they are, they would coincide
    found = scalars(frame(tmp_path, table("t", *rows)))
    assert list(found.values()) == [float(number) for number in range(len(rows))]
    assert found["t/m/a=x%2Fb=y"] == 0.0
    assert found["t/m/a=x%252Fb=y"] == 2.0
    assert found["t/m/a=x/b=y"] == 11.0
    assert found["t/m/a=the"] == 3.0
    assert found["t/m/a=the/#2"] == 4.0
    assert found["t/m/a=the/#3"] == 10.0
    assert not any("\n" in name for name in found)


def test_numbers_that_were_not_measured_are_no_scalars(tmp_path: Any) -> None:
    made = table("t", {"layer": 0})
    made.add("m", None, n=0, unit="u", layer=1)
    assert list(scalars(frame(tmp_path, made))) == ["t/m/layer=0"]


def test_small_tables_come_first_and_what_is_left_out_is_counted(tmp_path: Any) -> None:
    large = table("large", *({"i": i} for i in range(8)))
    middle = table("middle", *({"i": i} for i in range(5)))
    small = table("small", *({"i": i} for i in range(3)))
    data = frame(tmp_path, large, middle, small)
    found = scalars(data, most=6)
    assert list(found)[:6] == [
        *(f"small/m/i={i}" for i in range(3)),
        *(f"middle/m/i={i}" for i in range(3)),
    ]
    assert dict(list(found.items())[6:]) == {
        f"{ONLY_IN_TABLE}/middle": 2,
        f"{ONLY_IN_TABLE}/large": 8,
    }
    assert len(scalars(data, most=16)) == 16  # room for all: nothing to count


def test_the_table_is_what_wandb_makes_of_the_rows_one_by_one(tmp_path: Any) -> None:
    import wandb

    tables = (
        table("t", {"layer": 1, "top": True}, {"layer": 2, "top": False}),
        table("u", {"dose": 0.25, "word": "a"}, {"word": "b"}),
    )
    tables[1].add("m", None, n=0, unit="u", word="c")
    data = frame(tmp_path, *tables)
    ours = metrics_table(data)
    assert ours.columns == list(data.columns)
    kinds = [str, str, float, float, float, int, str, int, bool, float, str]
    slow = wandb.Table(columns=ours.columns, data=ours.data, dtype=kinds, optional=True)
    told = [one.to_json(wandb.Artifact("a", "t")) for one in (ours, slow)]
    assert told[0] == told[1]
    assert told[0]["nrows"] == 5
    assert told[0]["data"][4][2] is None


def test_a_table_above_wandbs_limit_loses_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setattr(wandb.Table, "MAX_ARTIFACT_ROWS", 10)
    data = pd.DataFrame({"table": ["t"] * 11, "value": range(11)})
    ours = metrics_table(data)
    slow = wandb.Table(columns=ours.columns, data=ours.data)
    assert len(slow.to_json(wandb.Artifact("a", "t"))["data"]) == 10  # wandb cuts it off
    found = ours.to_json(wandb.Artifact("a", "t"))
    assert len(found["data"]) == found["nrows"] == 11
