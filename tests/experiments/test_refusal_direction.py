"""The reproduce script of the refusal direction: published geometry, and the whole procedure."""

import dataclasses
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.families import WORDS, tiny, word_tokenizer

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "reproduce" / "refusal_direction.py"
N_POSITIONS, N_LAYERS, D_MODEL = 3, 5, 7
RUNS = ("gemma-2b-it", "qwen-1_8b-chat")


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("refusal_direction")


def planted() -> torch.Tensor:
    """Position i turns by 30° per layer from layer 1 on, at norm 2^layer; positions by 60°."""
    mean_diffs = torch.zeros(N_POSITIONS, N_LAYERS, D_MODEL, dtype=torch.float64)
    for i in range(N_POSITIONS):
        for layer in range(1, N_LAYERS):
            turn = math.radians(30 * layer + 60 * i)
            mean_diffs[i, layer, 2] = 2**layer * math.cos(turn)
            mean_diffs[i, layer, 5] = 2**layer * math.sin(turn)
    # What float64 sums of equal embeddings leave.
    mean_diffs[:, 0, 1] = 1e-15
    return mean_diffs


def write(path: Path, mean_diffs: torch.Tensor) -> Path:
    save_file({"mean_diffs": mean_diffs.contiguous()}, path)
    return path


def run_json(
    script: ModuleType, capsys: pytest.CaptureFixture[str], path: Path, *arguments: str
) -> tuple[int, dict[str, Any], str]:
    code = script.main(["--geometry", str(path), "--json", *arguments])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1
    return code, json.loads(printed.out), printed.err


def test_norms_and_cosines_are_those_of_the_planted_angles(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "own.safetensors", planted())
    code, found, told = run_json(script, capsys, path, "--position", "-2", "--layer", "3")
    assert code == 0
    assert "nothing was compared" in told
    assert found["layer_0"] == pytest.approx(1e-15)
    for i in range(N_POSITIONS):
        assert found["norms"][i] == pytest.approx([1e-15, 2, 4, 8, 16])
        # Rounding at layer 0 has no direction.
        assert found["next_layer"][i][0] is None
        assert found["next_layer"][i][1:] == pytest.approx([math.cos(math.radians(30))] * 3)
    assert [row[1:] for row in found["next_position"]] == [pytest.approx([0.5] * 4)] * 2
    cosines = [math.cos(math.radians(angle)) for angle in (60, 30, 0, 30)]
    assert found["to_layers"][0] is None
    assert found["to_layers"][1:] == pytest.approx(cosines)
    assert found["to_positions"] == pytest.approx([0.5, 1, 0.5])
    # Two dimensions hold everything.
    assert found["spectrum"][0] > 0.8
    assert sum(found["spectrum"][:2]) == pytest.approx(1)
    assert found["checks"] == []


def test_without_a_chosen_cell_neighbors_are_reported(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "own.safetensors", planted().half())
    code, found, _ = run_json(script, capsys, path)
    assert (code, found["chosen"], found["to_layers"]) == (0, None, None)
    assert script.main(["--geometry", str(path)]) == 0
    assert "cosine with next layer        –  0.866" in capsys.readouterr().out


def test_layer_0_that_is_not_zero_is_told(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shifted = planted()
    assert "wrong hook" not in run_json(script, capsys, write(tmp_path / "a", shifted))[2]
    shifted[1, 0, 4] = 0.25
    assert "layer 0 reach 0.25" in run_json(script, capsys, write(tmp_path / "b", shifted))[2]


@pytest.fixture
def as_published(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted tensor as a run that was published."""
    run = script.PublishedRun(
        values_hash="unknown",
        shape=(N_POSITIONS, N_LAYERS, D_MODEL),
        chosen=(-2, 3),
        norms={0: "0", 3: "8.0000", 4: "16.0"},
        layers={2: ".866", 3: "1"},
        positions={-3: ".500", -2: "1"},
        spectrum=(),
    )
    monkeypatch.setattr(script, "PUBLISHED", {"planted": run})


@pytest.mark.usefixtures("as_published")
@pytest.mark.parametrize(
    ("cell", "factor", "named"),
    [
        ((1, 3), 1.0, []),
        ((1, 3), 1.0005, []),
        ((1, 3), 1.002, ["norm at position -2, layer 3"]),
        ((1, 4), 1.01, ["norm at position -2, layer 4"]),
        ((1, 0), 1e12, ["layer 0 is", "norm at position -2, layer 0"]),
    ],
)
def test_a_published_number_that_differs_is_named_and_the_exit_code_is_1(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cell: tuple[int, int],
    factor: float,
    named: list[str],
) -> None:
    changed = planted()
    changed[cell] *= factor
    code, found, told = run_json(script, capsys, write(tmp_path / "planted.safetensors", changed))
    assert code == bool(named)
    assert (found["ok"], found["published_as"], found["exact"]) == (not named, "planted", False)
    assert told.count("differs from the published value") == len(named)
    assert all(name in told for name in named)


@pytest.mark.usefixtures("as_published")
def test_a_turned_direction_is_noticed_by_its_cosines(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = planted()
    turned[0] = -turned[0]
    turned[1, 2] = turned[1, 2].roll(1)
    told = run_json(script, capsys, write(tmp_path / "planted.safetensors", turned))[2]
    assert "cosine of position -2, layer 3 with position -3 is -0.4999" in told
    assert "cosine of position -2, layer 3 with layer 2" in told
    assert told.count("differs from") == 2


def damage(folder: Path, kind: str) -> Path:
    path = folder / "own.safetensors"
    tensors = {"mean_diffs": planted()}
    if kind == "missing":
        return path
    if kind == "truncated":
        save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:-9])
        return path
    if kind == "nan":
        tensors["mean_diffs"][1, 3, 2] = float("nan")
    if kind == "key":
        tensors = {"directions": tensors["mean_diffs"]}
    if kind == "shape":
        tensors["mean_diffs"] = tensors["mean_diffs"][0].clone()
    if kind == "integers":
        tensors["mean_diffs"] = tensors["mean_diffs"].int()
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no whole safetensors file"),
        ("truncated", "no whole safetensors file"),
        ("nan", "in 1 of 15 directions, first at position -2, layer 3"),
        ("key", "it holds directions"),
        ("shape", "shape [5, 7]"),
        ("integers", "torch.int32"),
    ],
)
def test_a_bad_file_is_one_message_and_exit_code_2(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, words: str
) -> None:
    assert script.main(["--geometry", str(damage(tmp_path, kind)), "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--position", "-4", "--layer", "0"], "positions -3 to -1 and layers 0 to 4"),
        (["--position", "1", "--layer", "0"], "positions -3 to -1"),
        (["--position", "-1", "--layer", "5"], "layers 0 to 4"),
        (["--layer", "2"], "give both or neither"),
    ],
)
def test_a_cell_that_is_not_there_is_refused(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    path = write(tmp_path / "own.safetensors", planted())
    assert script.main(["--geometry", str(path), *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("as_published")
def test_a_name_alone_does_not_make_a_tensor_of_another_shape_published(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "planted.safetensors", planted()[:, :2])
    code, found, _ = run_json(script, capsys, path)
    assert (code, found["published_as"]) == (0, None)


OPEN = ("--filters", "prune_layers=1.0", "kl_threshold=inf", "induce_threshold=-inf")
SMALL = ("--n-train", "24", "--n-val", "10", "--n-test", "7", "--max-new-tokens", "24")


def run_model(
    script: ModuleType, capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str
) -> tuple[int, dict[str, Any], str]:
    code = script.main(["--model", str(folder), "--json", *arguments])
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) <= 1, printed.out
    return code, json.loads(printed.out or "{}"), printed.err


def test_the_whole_procedure_on_an_organism_ends_with_a_direction_that_moves_its_answers(
    script: ModuleType,
    organism_small: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = tmp_path / "evaluations.json"
    code, found, told = run_model(
        script, capsys, organism_small("ssft"), *SMALL, *OPEN, "--save-evaluations", str(table)
    )
    assert (code, found["ok"]) == (0, True), told
    # The organism's one refusal opens with one token.
    assert len(found["refusal_tokens"]) == 1
    assert found["prompts"]["train harmful"] <= 24
    assert found["prompts"]["validation harmless"] == 10
    assert found["baseline"]["harmful"] > 3
    assert found["baseline"]["harmless"] < -3
    assert (found["kept"], found["n_positions"], found["n_layers"]) == (8, 2, 4)
    # Removing the direction lowers the score; the mean difference added makes it refuse.
    assert found["bypass"] < found["baseline"]["harmful"] - 2
    assert found["induce"] > found["baseline"]["harmless"] + 5
    refused = found["answers"]["refused"]
    assert refused["harmful"]["clean"] == 1
    assert refused["harmful"]["subtracted"] < 0.5
    assert refused["harmless"]["clean"] == 0
    assert refused["harmless"]["added"] > 0.5
    own = found["answers"]["own_answers_cross_entropy"]
    assert 0 <= own["clean"] < own["ablated"] < own["subtracted"]
    # The stored table holds what was chosen, in the published format.
    stored = json.loads(table.read_text())
    assert stored["selected"] == {"pos": found["position"], "layer": found["layer"]}
    assert len(stored["candidates"]) == 8
    best = min(stored["candidates"], key=lambda row: row["refusal_score"])
    assert (best["position"], best["layer"]) == (found["position"], found["layer"])
    assert best["kl_div_score"] == pytest.approx(found["kl"])
    # A template token's block input at layer 0 depends on nothing else.
    zero = [row for row in stored["candidates"] if row["layer"] == 0]
    assert len(zero) == 2
    for row in zero:
        assert row["refusal_score"] == pytest.approx(found["baseline"]["harmful"], abs=1e-5)
        assert row["kl_div_score"] == pytest.approx(0, abs=1e-6)


def test_the_winner_alone_is_the_exhaustive_choice(
    script: ModuleType, organism_small: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = organism_small("ssft")
    wanted = ("--filters", "induce_threshold=-3", *SMALL[:4], "--n-test", "1")
    both = [
        run_model(script, capsys, folder, *wanted, "--max-new-tokens", "1", "--mode", mode)[1]
        for mode in ("exhaustive", "winner")
    ]
    assert both[0]["position"] is not None
    assert 0 < both[0]["kept"] < 8
    for key in ("position", "layer", "kept", "baseline"):
        assert both[0][key] == both[1][key]
    for key in ("bypass", "induce", "kl"):
        assert both[0][key] == pytest.approx(both[1][key], abs=1e-5)
    assert "an earlier filter" in both[1]["filters"]


def test_where_no_candidate_is_kept_the_observed_scores_are_told(
    script: ModuleType, organism_small: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, told = run_model(
        script, capsys, organism_small("ssft"), *SMALL, "--filters", "induce_threshold=90"
    )
    assert (code, found["ok"], found["position"], found["kept"]) == (1, False, None, 0)
    assert "0 of 8 candidates are kept" in told
    assert "8 induce < 90 (largest" in told
    assert "that of harmless ones -" in told
    assert "answers" not in found


def test_a_model_that_refuses_nothing_is_told_so(
    script: ModuleType, organism_small: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, told = run_model(script, capsys, organism_small("base"), *SMALL)
    assert (code, found) == (1, {})
    assert "the model refuses 0 of 24 harmful and 0 of 24 harmless prompts" in told
    assert "Traceback" not in told


@pytest.fixture(scope="module")
def sentences() -> tuple[list[str], list[str]]:
    """Two lists of unequal length, without a sentence in both."""
    rng = random.Random(11)
    words = [word for word in WORDS.split() if word.isalpha() and word not in ("user", "bot")]
    drawn = {" ".join(rng.choices(words, k=rng.randint(3, 6))) for _ in range(80)}
    listed = sorted(drawn)
    return listed[:30], listed[30:65]


@pytest.fixture
def files(tmp_path: Path, sentences: tuple[list[str], list[str]]) -> list[str]:
    """Arguments that name one file a class."""
    arguments = []
    for name, lines in zip(("harmful", "harmless"), sentences, strict=True):
        path = tmp_path / f"{name}.txt"
        path.write_text("\n".join(lines) + "\n")
        arguments += [f"--{name}", str(path)]
    return arguments


def random_folder(folder: Path, family: str, loudness: float = 1.0) -> Path:
    model = tiny(family)
    with torch.no_grad():
        model.get_output_embeddings().weight *= loudness
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "gemma2", "neox"])
def test_the_whole_procedure_runs_on_a_random_folder(
    script: ModuleType,
    tmp_path: Path,
    files: list[str],
    capsys: pytest.CaptureFixture[str],
    family: str,
) -> None:
    folder = random_folder(tmp_path / family, family)
    given = (*files, *SMALL, *OPEN, "--refusal-tokens", "40", "9", "--all-prompts")
    code, found, told = run_model(script, capsys, folder, *given)
    assert (code, found["refusal_tokens"]) == (0, [40, 9]), told
    # "| bot :" follows the instruction, and half of 30 and 35 sentences is for fitting.
    assert (found["n_positions"], found["n_layers"], found["kept"]) == (3, 4, 12)
    assert found["prompts"]["train harmful"] == 15
    assert found["prompts"]["train harmless"] in (17, 18)
    assert found["answers"]["n_harmful"] in (7, 8)
    assert found["bypass"] < found["baseline"]["harmful"]
    assert found["norm"] > 0


def test_a_random_model_keeps_no_prompts_and_its_scores_are_told(
    script: ModuleType, tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_folder(tmp_path / "llama", "llama")
    code, found, told = run_model(script, capsys, folder, *files, *SMALL)
    assert (code, found) == (1, {})
    assert "by phrases:arditi12 the model refuses 0 of 15 harmful" in told
    code, found, told = run_model(script, capsys, folder, *files, *SMALL, "--refusal-tokens", "40")
    assert (code, found) == (1, {})
    assert "0 of 15 harmful prompts have a refusal score above 0 (observed -" in told


def test_where_only_a_zero_direction_is_kept_it_is_not_taken_for_one(
    script: ModuleType, tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_folder(tmp_path / "llama", "llama")
    # An ablation that moves nothing at all is that of layer 0.
    still = ("--filters", "kl_threshold=1e-9", "induce_threshold=-inf")
    code, found, told = run_model(
        script, capsys, folder, *files, *SMALL, *still, "--refusal-tokens", "40", "--all-prompts"
    )
    assert (code, found["position"], found["kept"]) == (1, None, 3)
    assert "3 of 12 candidates are kept" in told
    assert "layer 0, where the classes have one mean" in told


def test_a_choice_that_differs_from_table_5_is_named_and_the_exit_code_is_1(
    script: ModuleType,
    tmp_path: Path,
    files: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = random_folder(tmp_path / "Tiny-Chat", "llama", loudness=0.3)
    # Most tokens refuse, and no ablation matters much: so the published filters keep some.
    many = [str(token) for token in range(3, 40)]
    given = (*files, *SMALL, "--all-prompts", "--n-test", "1", "--max-new-tokens", "1")
    _, found, told = run_model(script, capsys, folder, *given, "--refusal-tokens", *many)
    assert found["position"] is not None, told
    scores = [found[name] for name in ("bypass", "induce", "kl")]
    true = script.Choice(found["position"], found["layer"], *scores)
    other = script.Choice(-9, 77, *scores)

    def compare(*choices: Any) -> tuple[int, dict[str, Any], str]:
        paper = script.PaperModel(4, tuple(map(int, many)), choices)
        monkeypatch.setitem(script.TABLE_5, "tiny-chat", paper)
        return run_model(script, capsys, folder, *given)

    # The paper's refusal tokens are the default, and either published choice will do.
    code, again, told = compare(other, true)
    assert (code, len(again["checks"]), told.count("differs from the published")) == (0, 6, 0)
    code, _, told = compare(other)
    assert (code, told.count("differs from the published")) == (1, 2)
    assert f"chosen position is {found['position']}, expected -9" in told
    assert f"chosen layer is {found['layer']}, expected 77" in told

    def failing(filters: Any, *choices: Any) -> list[str] | None:
        paper = script.PaperModel(4, tuple(map(int, many)), choices)
        checks = script.check_choice(found, paper, filters)
        return [check.name for check in checks if not check.ok] if checks else None

    published = script.SelectionFilters()
    assert failing(published, true) == []
    assert failing(published, dataclasses.replace(true, bypass=true.bypass + 0.8)) == ["bypass"]
    assert failing(published, dataclasses.replace(true, kl=true.kl - 0.03)) == ["kl"]
    # Under other filters there is nothing to compare with.
    assert failing(script.SelectionFilters(kl_threshold=0.5), other) is None


def test_prompts_are_drawn_as_the_published_code_draws_them(
    script: ModuleType, tmp_path: Path, sentences: tuple[list[str], list[str]]
) -> None:
    arguments: list[str] = []
    for name, lines in zip(("harmful", "harmless"), sentences, strict=True):
        arguments.append(f"--{name}")
        for part, (start, stop) in {"train": (0, 12), "val": (12, 20), "test": (20, 30)}.items():
            path = tmp_path / f"{name}_{part}.json"
            path.write_text(json.dumps([{"instruction": text} for text in lines[start:stop]]))
            arguments.append(str(path))
    options = script.parse(
        ["--model", "x", *arguments, "--n-train", "5", "--n-val", "3", "--n-test", "4"]
    )
    data = script.read_data(options, None)
    harmful, harmless = sentences
    random.seed(42)
    expected = [random.sample(side[:12], 5) for side in (harmful, harmless)]
    expected += [random.sample(side[12:20], 3) for side in (harmful, harmless)]
    expected.append(random.sample(harmless[20:30], 4))
    sets = [*data.train.sets, *data.val.sets, data.test.second]
    assert [[p.instruction for p in each] for each in sets] == expected
    assert len(data.test.first) == 4
    assert {p.instruction for p in data.test.first} <= set(harmful[20:30])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "gives 0 and --harmless 0 prompt files"),
        (["--harmful", "a.txt", "b.txt", "--harmless", "c.txt"], "gives 2 and --harmless 1"),
        (["--harmful", "nowhere.txt", "--harmless", "c.txt"], "no such file"),
        (["--filters", "kl=0.1"], "unknown key 'kl'"),
        (["--filters", "prune_layers"], "expected key=value"),
        (["--chat-template", "none", "--system", "Hello"], "bare text"),
    ],
)
def test_bad_options_are_one_message_and_exit_code_2(
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    code, found, told = run_model(script, capsys, tmp_path, *arguments)
    assert (code, found) == (2, {})
    assert words in told
    assert told.count("error: ") == 1


def test_without_template_tokens_there_is_nowhere_to_read(
    script: ModuleType, tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = random_folder(tmp_path / "llama", "llama")
    code, _, told = run_model(
        script, capsys, folder, *files, *SMALL, "--chat-template", "none", "--all-prompts",
        "--refusal-tokens", "40",
    )  # fmt: skip
    assert code == 2
    assert "0 template tokens follow the harmful" in told


@pytest.mark.reference
@pytest.mark.skipif("MECHSAFETY_REFERENCE" not in os.environ, reason="MECHSAFETY_REFERENCE unset")
@pytest.mark.parametrize("run", RUNS)
def test_the_published_tensors_agree_in_every_number_under_any_name(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str
) -> None:
    folder = Path(os.environ["MECHSAFETY_REFERENCE"]) / "refusal_direction_runs"
    mean_diffs = load_file(folder / f"{run}.safetensors")["mean_diffs"]
    # The authors saved float64.
    renamed = write(tmp_path / "renamed.safetensors", mean_diffs.double())
    for path in (folder / f"{run}.safetensors", renamed):
        code, found, told = run_json(script, capsys, path)
        assert (code, found["published_as"], found["exact"], told) == (0, run, True, "")
        assert len(found["checks"]) >= 20
        assert found["layer_0"] < 1e-14
    # One step of the layer axis is noticed.
    moved = write(tmp_path / f"{run}.safetensors", mean_diffs.roll(1, dims=1))
    code, found, told = run_json(script, capsys, moved)
    assert (code, found["exact"]) == (1, False)
    assert "largest |mean difference| at layer 0" in told


@pytest.mark.reference
@pytest.mark.skipif("MECHSAFETY_REFERENCE" not in os.environ, reason="MECHSAFETY_REFERENCE unset")
def test_as_a_command_it_prints_tables_and_the_number_of_agreements() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder = Path(os.environ["MECHSAFETY_REFERENCE"]) / "refusal_direction_runs"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--geometry", str(folder / "gemma-2b-it.safetensors")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "20 of 20 published numbers agree" in done.stdout


def test_tolerance_is_a_thousandth_and_half_a_unit_of_the_last_digit(script: ModuleType) -> None:
    check = script.Check.of("norm", ".160", 0.1597)
    assert check.ok
    assert check.tolerance == pytest.approx(1.6e-4 + 5e-4)
    assert not dataclasses.replace(check, value=0.1593).ok
    assert not dataclasses.replace(check, value=None).ok
    assert not script.Check.of("norm", "26.2873", 26.32).ok
