from pathlib import Path

import pytest

from mechsafety.core.errors import PromptError
from mechsafety.data.neutral import FileNeutral, OrganismNeutral
from mechsafety.data.pairs import FilePairs, OrganismPairs
from mechsafety.data.prompts import PromptSet, normalized
from mechsafety.data.synthetic_language import Preset
from mechsafety.organisms.prompts import neutral
from mechsafety.organisms.sources import StudyPrompts, neutral_prompts, study_prompts


def texts(*sets: PromptSet) -> set[str]:
    return {normalized(prompt.instruction) for side in sets for prompt in side}


def of_the_study(prompts: StudyPrompts) -> set[str]:
    held = [*prompts.pairs.values(), *prompts.contrasts.values()]
    return texts(*(side for pairs in held for side in pairs.sets))


@pytest.mark.parametrize("preset", ["default", "small"])
def test_neutral_prompts_of_the_world_hold_none_of_the_study_and_share_no_content(
    preset: Preset,
) -> None:
    asked = study_prompts(OrganismPairs(n=240, preset=preset), seed=0)
    found = neutral_prompts(OrganismNeutral(preset=preset, n_fit=400, n_held_out=90), asked, seed=0)
    assert (len(found.fit), len(found.held_out)) == (400, 90)
    assert not texts(found.fit, found.held_out) & of_the_study(asked)
    assert not set(found.fit.groups) & set(found.held_out.groups)
    assert found.hashes.keys() == {"neutral.fit", "neutral.held_out"}
    assert found == neutral_prompts(
        OrganismNeutral(preset=preset, n_fit=400, n_held_out=90), asked, seed=0
    )


def test_a_prompt_that_the_study_holds_would_have_been_drawn_without_looking() -> None:
    asked = study_prompts(OrganismPairs(n=240, preset="small"), seed=0)
    blind = neutral(400, 0, "fit", preset="small")
    assert texts(blind) & of_the_study(asked)


def files(folder: Path, neutral_rows: list[str]) -> tuple[StudyPrompts, FileNeutral]:
    pairs = folder / "pairs.csv"
    rows = [f"Forge coin {n},Polish coin {n}" for n in range(12)]
    pairs.write_text("\n".join(["harmful,harmless", *rows]))
    (folder / "plain.csv").write_text("\n".join(["text", *neutral_rows]))
    named = FilePairs(
        source="files", harmful=f"{pairs}[harmful]", harmless=f"{pairs}[harmless]", pairing="twins"
    )
    return study_prompts(named, seed=0), FileNeutral(
        source="files", prompts=f"{folder / 'plain.csv'}[text]", held_out=0.25
    )


def test_neutral_prompts_of_a_file_are_split_by_content(tmp_path: Path) -> None:
    asked, source = files(tmp_path, [f"bake cake {n}" for n in range(20)])
    found = neutral_prompts(source, asked, seed=0)
    assert (len(found.fit), len(found.held_out)) == (15, 5)
    assert not texts(found.fit) & texts(found.held_out)


def test_a_file_that_holds_prompts_of_the_study_is_refused_with_their_number(
    tmp_path: Path,
) -> None:
    shared = ["polish  COIN 3", "forge coin 7"]  # spelled otherwise, and the same requests
    asked, source = files(tmp_path, [f"bake cake {n}" for n in range(20)] + shared)
    with pytest.raises(PromptError, match=r"2 of its 22 rows.*Remove these rows"):
        neutral_prompts(source, asked, seed=0)
