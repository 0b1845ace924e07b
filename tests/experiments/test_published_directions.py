"""Directions across models by script: planted ones always, published ones where they are."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "reproduce" / "published_directions.py"
N_POSITIONS, N_FIRST, N_SECOND, D_MODEL = 3, 5, 8, 90
N_HARMFUL, N_HARMLESS, WIDTH, MASSIVE = 24, 29, 60, 17


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> Iterator[ModuleType]:
    # Run as a script it finds its neighbors by itself.
    sys.path.insert(0, str(SCRIPT.parent))
    yield load_script("published_directions")
    sys.path.remove(str(SCRIPT.parent))


def run_json(
    script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, dict[str, Any], str]:
    code = script.main([*arguments, "--json"])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    return code, json.loads(printed.out), printed.err


def stack(n_layers: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(N_POSITIONS, n_layers, D_MODEL, generator=generator)


def statistics(pair: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {row["statistic"]: row for row in pair["statistics"]}


def test_a_shared_direction_stands_out_and_unrelated_ones_do_not(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, third = stack(N_FIRST, 1), stack(N_SECOND, 2), stack(N_SECOND, 3)
    first[:, 0] = 0
    third[1, 6] += 30 * first[1, 2] / first[1, 2].norm()
    for name, values in (("a", first), ("b", second), ("c", third)):
        save_file({"mean_diffs": values.contiguous()}, tmp_path / f"{name}.safetensors")
    code, found, said = run_json(script, capsys, "--directions", str(tmp_path))
    assert code == 0
    assert "nothing was compared" in said
    pairs = {pair["first"] + pair["second"]: pair for pair in found["pairs"]}
    assert pairs.keys() == {"ab", "ac", "bc"}
    name = "largest |cosine| of any two layers"
    unrelated, alike = statistics(pairs["ab"])[name], statistics(pairs["ac"])[name]
    assert unrelated["null_low"] <= unrelated["value"] <= unrelated["null_high"]
    assert alike["value"] > 0.9 > alike["null_high"]
    assert alike["p_value"] == pytest.approx(alike["resolution"])
    assert pairs["ac"]["best_match"] == {"position": -2, "layers": [2, 6]}


def test_layers_are_compared_with_every_layer_and_positions_with_every_position(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = torch.zeros(N_POSITIONS, N_FIRST, D_MODEL)
    for i in range(N_POSITIONS):
        for layer in range(1, N_FIRST):
            turn = math.radians(20 * layer + 60 * i)
            values[i, layer, 3], values[i, layer, 8] = math.cos(turn), math.sin(turn)
    save_file({"mean_diffs": values}, tmp_path / "own.safetensors")
    code, found, _ = run_json(script, capsys, "--directions", str(tmp_path))
    assert code == 0
    (model,) = found["models"]
    assert found["pairs"] == []
    assert model["layer_by_layer"][2][0] == [None] * N_FIRST
    assert model["layer_by_layer"][2][1][1:] == pytest.approx(
        [math.cos(math.radians(20 * steps)) for steps in range(N_FIRST - 1)]
    )
    assert model["position_by_position"][3][0] == pytest.approx([1, 0.5, -0.5])


@pytest.fixture
def arms(tmp_path: Path) -> Path:
    """`own` has noise and a massive channel of its own; `baseline` and `kin` differ by little."""
    generator = torch.Generator().manual_seed(5)
    common = {
        "harmful": torch.randn(N_HARMFUL, WIDTH, generator=generator),
        "harmless": torch.randn(N_HARMLESS, WIDTH, generator=generator),
    }
    common["harmful"][:, 4] += 1
    for arm, noise in (("baseline", 0.2), ("kin", 0.2), ("own", 1.0)):
        tensors = {}
        for layer in (9, 14):
            for name, rows in common.items():
                mine = rows + noise * torch.randn(rows.shape, generator=generator)
                if arm == "own":
                    mine[:: 6 if name == "harmful" else 7, MASSIVE] += 400
                tensors[f"{name}.layer{layer}"] = mine.half()
        save_file(tensors, tmp_path / f"{arm}.safetensors")
    return tmp_path


def test_arms_stand_beside_what_their_prompts_share_with_and_without_massive_channels(
    script: ModuleType, arms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, _ = run_json(script, capsys, "--arms", str(arms), "--layers", "14")
    assert code == 0
    assert found["massive_channels"] == [MASSIVE]
    rows = {(row["first"], row["second"], row["control"]): row for row in found["arms"]}
    assert len(rows) == 6
    near, far = (rows["baseline", other, "channels_out"] for other in ("kin", "own"))
    assert near["cosine"] > 0.9
    assert near["null_low"] > 0.85  # the prompts alone
    assert far["null_high"] < near["null_low"]
    for row in rows.values():
        assert row["cosine_low"] <= row["cosine"] <= row["cosine_high"]
        assert row["cka_low"] <= row["cka"] <= row["cka_high"]
        assert row["excess"] == pytest.approx(row["cosine"] - row["residual_null_mean"])
    # One channel decides both numbers, until it is out.
    assert rows["baseline", "own", "all"]["cka"] < 0.1 < far["cka"]
    assert rows["baseline", "own", "all"]["cosine"] + 0.1 < far["cosine"]
    assert script.main(["--arms", str(arms), "--layers", "14"]) == 0
    assert "same permuted labels in both arms" in capsys.readouterr().out


def test_bad_input_is_one_message_and_exit_code_2(
    script: ModuleType, arms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert script.main(["--directions", str(empty)]) == 2
    assert "no .safetensors files there" in capsys.readouterr().err
    assert script.main(["--arms", str(arms), "--layers", "3"]) == 2
    assert "the files hold layers [9, 14]" in capsys.readouterr().err
    for other in ("kin", "own"):
        (arms / f"{other}.safetensors").unlink()
    assert script.main(["--arms", str(arms)]) == 2
    assert "two or more arms on the same prompts" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        script.main([])


@pytest.mark.reference
@pytest.mark.skipif("MECHSAFETY_REFERENCE" not in os.environ, reason="MECHSAFETY_REFERENCE unset")
def test_published_directions_and_arms_agree(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(os.environ["MECHSAFETY_REFERENCE"])
    options = ("--directions", str(folder / "refusal_direction_runs"))
    options += ("--arms", str(folder / "llama2_7b_lat_study"), "--layers", "12")
    code, found, _ = run_json(script, capsys, *options)
    assert code == 0
    assert found["ok"]
    assert len(found["checks"]) == 48
    (pair,) = found["pairs"]
    assert all(row["p_value"] > 0.01 for row in pair["statistics"])
    assert statistics(pair)["cosine of the chosen directions"]["value"] == pytest.approx(
        -0.0143, abs=1e-4
    )
