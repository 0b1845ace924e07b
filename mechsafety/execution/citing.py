"""Which works a run rests on, from the docstrings of the code that its config leads to.

A docstring cites in a paragraph that says `Source:` or `Sources:`, by the key that the work has in
`references.bib`: `arXiv:` with its number, else `doi:` with its DOI, else its address, else `key:`
with author and year. A work that is only mentioned is not cited.

What counts is read from the files and the config, never from what happens to be imported: a resumed
run does without modules that its first attempt loaded, workers load others than their parent, and
one process runs several experiments. The same config so cites the same works, wherever it runs.
"""

import difflib
import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

import mechsafety
from mechsafety.core.config import FrozenConfig, StudyConfig
from mechsafety.core.errors import RecordError
from mechsafety.records.schema import ModelUsed, values_in

if TYPE_CHECKING:
    from mechsafety.organisms.recipes import Recipe

PACKAGE: Final = Path(mechsafety.__file__).parent
REFERENCES: Final = PACKAGE / "references.bib"

ALWAYS: Final = {
    "mechsafety": "mechsafety",
    "https://github.com/TransformerLensOrg/TransformerLens": "mechsafety.models.twin",
}
"""Cited by every run: key → module."""

_KEY: Final = re.compile(
    r"arXiv:\d{4}\.\d{4,5}|doi:10\.\d{4,9}/[^\s\"'<>()\[\]{},;]+|https?://[^\s\"'<>()\[\]{},;]+"
    r"|key:[a-z]+\d{4}[a-z]?"
)
_PARAGRAPH: Final = re.compile(r"(?<![\w`])Sources?:(.*?)(?:\n\s*\n|\Z)", re.S)
_ENTRY: Final = re.compile(r"^@\w+\{([^,\s]+),\n.*?^\}\n", re.M | re.S)
_COMMENT: Final = re.compile(r"^ *#.*", re.M)
_STATEMENT: Final = re.compile(r"^(?=[^\s)\]}#])", re.M)
_DEFINED: Final = re.compile(
    r"(?P<indent> *)(?:async def|def|class) (?P<name>\w+)(?:\((?P<base>\w+)\))?"
    r"|(?P<constant>\w+)\b[^\n=(]*=(?P<alias> Literal\[)?"
)
_OWNER: Final = re.compile(rf"^(?:{_DEFINED.pattern})", re.M)
_IMPORT: Final = re.compile(r"^ *from (mechsafety[\w.]*) import (?:\(([^)]*)\)|([^\n#]+))", re.M)
_NAME: Final = re.compile(r"(\w+)(?: as (\w+))?")
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Citing:
    """One docstring that names sources."""

    owner: str
    """Function, class or constant whose docstring it is; empty for a module."""
    outer: str
    """The class that the owner is a method of; its own name where there is none."""
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Module:
    citing: tuple[Citing, ...]
    defines: Mapping[str, str]
    """Name → the statements that define it, without docstrings."""
    imports: Mapping[str, tuple[str, str]]
    """Name as it is known here → module and name that it comes from."""
    inert: frozenset[str]
    """Names that do nothing by themselves: settings classes, and lists of options."""


def citations(config: StudyConfig, models: Mapping[str, ModelUsed]) -> dict[str, tuple[str, ...]]:
    """Key → modules that cite it, of everything that this run uses.

    Used is what the study's `run` names, directly or through what it names, but for settings that
    the config does not hold (of `direction: {method: scav}` those of SCAV are held), and for what
    has the name of an option that the config leaves (`maps: {methods: [ridge]}` leaves
    `procrustes`). Of training, what made the organisms among `models` and their bases. What a run
    had no cause to do, such as an attack on a model that refuses nothing, still counts.

    Args:
        config: As run, filled in.
        models: What was opened, by the names that the config gives (`Manifest.models`).
    """
    values, recipes = list(values_in(config)), _recipes(models)
    unchosen = _unchosen(values)
    held = [*values, *(value for recipe in recipes for value in values_in(recipe))]
    settings = {type(value) for value in held if isinstance(value, FrozenConfig)}
    roots = [(f"mechsafety.studies.{config.study}", "run"), *_training(recipes)]
    roots += [(one.__module__, one.__name__) for one in settings if _is_ours(one.__module__)]
    reached = _reached(roots)
    cited: dict[str, set[str]] = {key: {module} for key, module in ALWAYS.items()}
    for module in reached:
        for citing in _module(module).citing:
            if citing.owner.lower() not in unchosen and _is_used(citing, module, reached):
                for key in citing.keys:
                    cited.setdefault(key, set()).add(module)
    return {key: tuple(sorted(modules)) for key, modules in sorted(cited.items())}


def bibliography(keys: Iterable[str]) -> str:
    r"""The entries of these keys as BibTeX, ordered by key, for `\cite{arXiv:2406.11717}`.

    Raises:
        RecordError: Keys that `references.bib` has no entry for; the message names them.
    """
    entries, wanted = references(), sorted(set(keys))
    if missing := [key for key in wanted if key not in entries]:
        near = difflib.get_close_matches(missing[0], entries, n=1)
        raise RecordError(
            f"writing the bibliography: a docstring cites {', '.join(missing)}, and "
            f"{REFERENCES.name} has no such entry. "
            + (f"Did you mean '{near[0]}'? " if near else "")
            + f"Add an entry under exactly this key to {REFERENCES}, or correct the docstring."
        )
    return "\n".join(entries[key] for key in wanted)


@lru_cache
def references() -> dict[str, str]:
    """Key → entry, as `references.bib` has them."""
    text = REFERENCES.read_text(encoding="utf-8")
    return {match[1]: match[0] for match in _ENTRY.finditer(text)}


def keys_in(text: str) -> tuple[str, ...]:
    """Every key in a text, each once, without the full stop that may follow it."""
    return tuple(dict.fromkeys(found.rstrip(".:") for found in _KEY.findall(text)))


def sources_in(docstring: str) -> tuple[str, ...]:
    """The paragraphs of a docstring that name its sources, from `Source:` to their end."""
    return tuple(_PARAGRAPH.findall(docstring))


def citing_docstrings(text: str) -> tuple[Citing, ...]:
    """The docstrings of a file that name sources, in their order."""
    if "Source" not in text:
        return ()
    owner = outer = ""
    found: list[Citing] = []
    # Python's own parser takes a second for all files of the package; a test compares.
    for i, part in enumerate(text.split('"""')):
        if i % 2 and (sources := sources_in(part)):
            found.append(Citing(owner, outer, keys_in("\n".join(sources))))
        for piece in () if i % 2 else _OWNER.finditer(part):
            owner = piece["name"] or piece["constant"]
            outer = outer if piece["indent"] else owner
    return tuple(found)


def _read(text: str) -> _Module:
    code = _COMMENT.sub("", "".join(text.split('"""')[::2]))
    defines: dict[str, str] = {}
    inert: set[str] = set()
    decorators = ""
    for statement in _STATEMENT.split(code):
        if statement.startswith("@"):
            decorators += statement
        elif found := _DEFINED.match(statement):
            name = found["name"] or found["constant"]
            defines[name] = defines.get(name, "") + decorators + statement
            decorators = ""
            if found["base"] in {"FrozenConfig", "StudyConfig"} or found["alias"]:
                inert.add(name)
    imports = {
        known or name: (module, name)
        for module, several, one in _IMPORT.findall(code)
        for name, known in _NAME.findall(several or one)
    }
    return _Module(citing_docstrings(text), defines, imports, frozenset(inert))


def _reached(roots: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """What the roots lead to: module → name of a definition → its text."""
    reached: dict[str, dict[str, str]] = {}
    waiting = list(roots)
    while waiting:
        module, name = waiting.pop()
        here = _module(module)
        if name in reached.get(module, ()):
            continue
        if name not in here.defines:
            waiting += _elsewhere(module, name)
            continue
        text = reached.setdefault(module, {})[name] = here.defines[name]
        for word in set(_WORD.findall(text)):
            if word in here.defines:
                waiting.append((module, word))
            elif word in here.imports:
                into, there = here.imports[word]
                # To name settings in a signature is not to use them; to make them is, but for the
                # defaults of other settings.
                made = name not in here.inert and f"{word}(" in text
                if made or there not in _module(into).inert:
                    waiting.append((into, there))
    return reached


def _elsewhere(module: str, name: str) -> list[tuple[str, str]]:
    """A name that a module passes on: from where it imports it, or all of a module below."""
    if name in _module(module).imports:
        return [_module(module).imports[name]]
    below = f"{module}.{name}"
    return [(below, each) for each in _module(below).defines] if _file(below).is_file() else []


def _is_used(citing: Citing, module: str, reached: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether the code that is reached has what the docstring is about."""
    if not citing.owner:
        return not _module(module).inert.issuperset(reached[module])
    if citing.outer not in reached[module]:
        return False
    if citing.outer == citing.owner:
        return True
    # Once where it is defined, and again where it is used.
    method = re.compile(rf"\b{citing.owner}\b")
    texts = (text for texts in reached.values() for text in texts.values())
    return sum(len(method.findall(text)) for text in texts) > 1


def _unchosen(values: Sequence[object]) -> frozenset[str]:
    """Options that the settings among these values offer at any depth, and no value names."""
    offered: set[str] = set()
    seen: set[type[FrozenConfig]] = set()
    waiting = [type(value) for value in values if isinstance(value, FrozenConfig)]
    while waiting:
        settings = waiting.pop()
        if settings not in seen:
            seen.add(settings)
            for field in settings.model_fields.values():
                options, below = _offered(field.annotation)
                offered |= options
                waiting += below
    return frozenset(offered - {value for value in values if isinstance(value, str)})


def _offered(annotation: Any) -> tuple[set[str], list[type[FrozenConfig]]]:
    """The words of every `Literal` in an annotation, and the settings that it names."""
    if isinstance(annotation, type) and issubclass(annotation, FrozenConfig):
        return set(), [annotation]
    if get_origin(annotation) is Literal:
        return {str(word) for word in get_args(annotation)}, []
    inner = [_offered(part) for part in get_args(annotation)]
    words = {word for options, _ in inner for word in options}
    return words, [settings for _, below in inner for settings in below]


def _recipes(models: Mapping[str, ModelUsed]) -> list["Recipe"]:
    """How the organisms among the models were made, and the bases that they were trained from."""
    used = [name for name, model in models.items() if model.organism]
    if not used:
        return []
    from mechsafety.organisms.cache import base_of
    from mechsafety.organisms.recipes import Organism, recipe

    organisms = [Organism.parse(name) for name in used]
    return [recipe(one) for organism in organisms for one in (base_of(organism), organism)]


def _training(recipes: Sequence["Recipe"]) -> list[tuple[str, str]]:
    """The loop and the objectives of these recipes: each objective's file has its name."""
    objectives = {
        "language_modeling" if recipe.stage == "base" else recipe.objective.objective
        for recipe in recipes
    }
    found = [(f"mechsafety.training.{name}", name) for name in sorted(objectives)]
    return [("mechsafety.training.loop", "train"), *found] if recipes else []


def _is_ours(module: str) -> bool:
    return module.startswith(f"{PACKAGE.name}.")


@cache
def _module(name: str) -> _Module:
    path = _file(name)
    if not path.is_file():
        # A study may lie elsewhere, on the path of its package.
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin)
    return _read(path.read_text(encoding="utf-8"))


def _file(name: str) -> Path:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
