"""What a docstring cites is in the bibliography, and a run cites what it uses and nothing else."""

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bibtexparser
import pytest
import yaml
from bibtexparser.library import Library

import mechsafety.studies
from mechsafety.core.config import StudyConfig, parse_config, read_yaml
from mechsafety.core.errors import RecordError
from mechsafety.execution.citing import (
    ALWAYS,
    PACKAGE,
    REFERENCES,
    Citing,
    bibliography,
    citations,
    citing_docstrings,
    keys_in,
    references,
    sources_in,
)
from mechsafety.execution.studies import load_study
from mechsafety.organisms.recipes import ORGANISMS
from mechsafety.records.schema import ModelUsed

ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

ARDITI, SCAV, STUDY = "arXiv:2406.11717", "arXiv:2404.12038", "arXiv:2504.18872"
LAT, DPO = "arXiv:2407.15549", "arXiv:2305.18290"
MUON = "https://kellerjordan.github.io/posts/muon/"
PROCRUSTES, RIDGE = "doi:10.1007/BF02289451", "doi:10.1080/00401706.1970.10488634"
ROGAN_GLADEN = "doi:10.1093/oxfordjournals.aje.a112510"
MANN_WHITNEY = "doi:10.1214/aoms/1177730491"
OKABE_ITO = "https://jfly.uni-koeln.de/color/"


def docstrings(body: list[ast.stmt], owner: str = "", outer: str = "") -> Iterator[tuple[str, ...]]:
    """(owner, outer owner, text) of every docstring, those beneath assignments too."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield from docstrings(statement.body, statement.name, outer or statement.name)
        elif isinstance(statement, ast.AnnAssign | ast.Assign) and not outer:
            target = (
                statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
            )
            owner = ast.unparse(target)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            yield owner, outer or owner, str(statement.value.value)


ALL = [
    (path, *found)
    for path in FILES
    for found in docstrings(ast.parse(path.read_text(encoding="utf-8")).body)
]


def config(name: str, **changed: Any) -> StudyConfig:
    raw = {**read_yaml(ROOT / "experiments" / f"{name}.yaml"), **changed}
    return parse_config(load_study(raw["study"]).config, raw, name)


def used(*names: str, organism: bool = True) -> dict[str, ModelUsed]:
    return {name: ModelUsed(source="folder", organism=organism) for name in names}


def parsed(text: str) -> Library:
    library = bibtexparser.parse_string(text)
    assert not library.failed_blocks, [block.raw for block in library.failed_blocks]
    return library


def test_every_key_has_an_entry_and_every_entry_is_cited() -> None:
    # A walk that finds nothing would pass for ever.
    assert len(ALL) > 500
    named = {key for *_, text in ALL for key in keys_in("\n".join(sources_in(text)))}
    named |= {key for *_, text in ALL for key in keys_in(text) if not key.startswith("http")}
    assert len(named) > 40
    entries = set(references())
    assert named <= entries, f"no entry in {REFERENCES.name}: {sorted(named - entries)}"
    spare = entries - named - set(ALWAYS)
    assert not spare, f"no docstring cites {sorted(spare)}"


def test_a_docstring_that_names_its_source_does_so_by_a_key() -> None:
    without = [
        f"{path.relative_to(ROOT)}: {' '.join(source.split())}"
        for path, *_, text in ALL
        for source in sources_in(text)
        if not keys_in(source)
    ]
    assert not without, "\n".join(without)


def test_the_quick_reader_of_docstrings_agrees_with_python() -> None:
    found = 0
    for path in FILES:
        slow = [
            Citing(owner, outer, keys_in("\n".join(sources_in(text))))
            for at, owner, outer, text in ALL
            if at == path and sources_in(text)
        ]
        assert list(citing_docstrings(path.read_text(encoding="utf-8"))) == slow, path
        found += len(slow)
    assert found > 60


def test_every_entry_says_who_what_and_when_and_agrees_with_its_key() -> None:
    library = parsed(REFERENCES.read_text(encoding="utf-8"))
    assert [entry.key for entry in library.entries] == list(references())
    assert list(references()) == sorted(references())
    for entry in library.entries:
        fields = {field.key: field.value for field in entry.fields}
        assert all(fields.get(name) for name in ("author", "title", "year")), entry.key
        assert re.fullmatch(r"(19|20)\d\d", fields["year"]), entry.key
        # What neither \cite nor BibTeX takes in a key.
        assert not re.search(r"""[\s"#%'(),={}~\\]""", entry.key)
        kind, _, value = entry.key.partition(":")
        identifier = {"arXiv": "eprint", "doi": "doi"}.get(kind)
        assert identifier is None or fields[identifier] == value
        assert kind != "https" or fields["url"] == entry.key
        assert kind != "arXiv" or fields["archivePrefix"] == "arXiv"


def test_the_bibliography_goes_with_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert REFERENCES.name in settings["package-data"]["mechsafety"]


def test_mechsafety_is_cited_as_its_own_file_says() -> None:
    (entry,) = parsed(references()["mechsafety"]).entries
    fields = {field.key: field.value for field in entry.fields}
    own = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert fields["title"] == own["title"]
    assert fields["author"].strip("{}") == own["authors"][0]["name"]
    assert fields["year"] == str(own["date-released"].year)


@pytest.mark.parametrize("name", ["concentration", "locality", "similarity"])
def test_a_run_cites_its_tools_and_the_paper_it_starts_from(name: str) -> None:
    cited = citations(config(name), {})
    assert {*ALWAYS, ARDITI} <= set(cited)
    assert all(module in {*sys.modules, "mechsafety"} for at in cited.values() for module in at)
    assert [entry.key for entry in parsed(bibliography(cited)).entries] == list(cited)


def test_scav_is_cited_if_the_config_selects_it_and_else_not() -> None:
    chosen = citations(config("similarity", direction={"method": "scav"}), {})
    assert chosen[SCAV] == ("mechsafety.directions.scav",)
    # Its module is loaded all the same, as the config could have named it.
    assert "mechsafety.directions.scav" in sys.modules
    for name in ("concentration", "locality", "similarity"):
        assert SCAV not in citations(config(name), {})


def test_a_map_that_the_config_leaves_out_is_not_cited() -> None:
    both = citations(config("similarity", maps={"methods": ["procrustes", "ridge"]}), {})
    assert {PROCRUSTES, RIDGE} <= set(both)
    one = citations(config("similarity", maps={"methods": ["ridge"]}), {})
    assert set(both) - set(one) == {PROCRUSTES}


def test_a_list_of_phrases_is_cited_where_it_judges() -> None:
    judges = "mechsafety.judges.phrases"
    for phrases, key in (("arditi12", ARDITI), ("study18", STUDY)):
        cited = citations(config("similarity", judge={"phrases": phrases}), {})
        assert [one for one, at in cited.items() if judges in at] == [key]
    for judge in (None, {"phrases": "anchored"}):
        cited = citations(config("similarity", judge=judge), {})
        assert not any(judges in at for at in cited.values())


def test_a_run_without_organisms_cites_no_training() -> None:
    models = used("org/chat@0123", "folder/of/a/model", organism=False)
    cited = citations(config("concentration"), models)
    training = [module for at in cited.values() for module in at if "training" in module]
    assert not training
    assert not {MUON, LAT, DPO} & set(cited)


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("base", {MUON}),
        ("organism:ssft@seed=3", {MUON}),
        ("noise", {MUON}),
        ("lat", {MUON, LAT}),
        ("at@preset=small", {MUON, LAT}),
        ("dpo", {MUON, DPO, "arXiv:2404.19733"}),
    ],
)
def test_an_organism_is_cited_for_its_own_training(name: str, added: set[str]) -> None:
    study = config("locality")
    without, cited = citations(study, {}), citations(study, used(name))
    training = {
        key for key, at in cited.items() if any(m.startswith("mechsafety.training.") for m in at)
    }
    assert added <= training
    assert {LAT, DPO} & training == {LAT, DPO} & added
    # Of their architecture, a Llama, beside what trained it.
    assert set(cited) - set(without) - training == {"arXiv:2302.13971"}


def test_every_arm_has_its_objective_in_a_file_of_that_name() -> None:
    assert len(ORGANISMS) > 5
    for arm in ORGANISMS:
        assert MUON in citations(config("locality"), used(arm))
    for objective in ("ssft", "dpo", "adversarial", "latent_adversarial", "noise"):
        path = PACKAGE / "training" / f"{objective}.py"
        assert f"def {objective}(" in path.read_text(encoding="utf-8")


def test_what_nothing_calls_is_not_cited_though_its_file_is_in_use() -> None:
    rates = (PACKAGE / "judges" / "rates.py").read_text(encoding="utf-8")
    assert any(ROGAN_GLADEN in citing.keys for citing in citing_docstrings(rates))
    assert ROGAN_GLADEN not in citations(config("concentration"), {})


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Callable[[str, str], set[str]]]:
    """What a study of this name and text cites, beside what every run does."""

    def cited(name: str, text: str) -> set[str]:
        (tmp_path / f"{name}.py").write_text(text)
        return set(citations(StudyConfig(study=name), {})) - set(ALWAYS)

    mechsafety.studies.__path__.append(str(tmp_path))
    yield cited
    mechsafety.studies.__path__.remove(str(tmp_path))


def test_a_method_is_cited_where_something_calls_it(
    written: Callable[[str, str], set[str]],
) -> None:
    text = (
        "class Judge:\n"
        '    def called(self):\n        """Source: doi:10.1000/called."""\n'
        '    def spare(self):\n        """Source: doi:10.1000/spare."""\n'
        "def run(config, context):\n    # Not spare.\n    return Judge().called()\n"
    )
    assert written("calling", text) == {"doi:10.1000/called"}


def test_what_is_taken_from_a_module_as_a_whole_is_cited(
    written: Callable[[str, str], set[str]],
) -> None:
    importing = "from mechsafety.metrics import auc\n"
    text = f"{importing}def run(config, context):\n    return auc.auc(config, context)\n"
    assert written("whole", text) == {MANN_WHITNEY}
    assert written("idle", f"{importing}def run(config, context):\n    return 1\n") == set()


def test_the_colors_of_the_page_are_no_method_of_the_run() -> None:
    import mechsafety.report.palette  # noqa: F401

    assert OKABE_ITO not in citations(config("concentration"), {})


def test_a_study_outside_the_package_cites_what_it_uses(toy_yaml: Path) -> None:
    toy = parse_config(load_study("toy").config, read_yaml(toy_yaml), "toy")
    assert list(citations(toy, {})) == sorted(ALWAYS)
    assert MUON in citations(toy, used("ssft"))


def test_a_key_without_an_entry_is_named_with_the_nearest_one() -> None:
    with pytest.raises(
        RecordError, match=r"cites arXiv:2406\.11171, .* no such entry\. Did you mean 'arXiv:2406"
    ):
        bibliography([ARDITI, "arXiv:2406.11171"])


def test_a_mention_is_not_a_citation() -> None:
    paragraphs = [f"Not so {ARDITI}, whose C is 1.", "Source: doi:10.1000/xyz.", f"As {STUDY}."]
    text = "\n\n".join(paragraphs)
    assert citing_docstrings(f'"""{text}\n"""\n') == (Citing("", "", ("doi:10.1000/xyz",)),)
    comment = f'"""A file."""\n# Source: {ARDITI}\nx = 1\n'
    assert citing_docstrings(comment) == ()
