"""What every model really received, for the record: hashes always, ids where the config says so."""

from collections.abc import Iterator, Mapping

from mechsafety.models.tokens import TokenUse

ByModel = Mapping[str, Mapping[str, TokenUse]]
"""Model → prompt set → what the set became."""


def token_provenance(used: ByModel) -> dict[str, object]:
    """Hashes of token ids, and of which prompts shared a pass, by model and prompt set."""
    return {
        "token_ids": {
            model: {name: one.sha256 for name, one in sets.items()} for model, sets in used.items()
        },
        "batches": {
            model: {name: one.batches for name, one in sets.items()} for model, sets in used.items()
        },
    }


def token_lines(used: ByModel) -> Iterator[dict[str, object]]:
    """One line a prompt with its ids, for the private folder: ids are the prompt's text."""
    for model, sets in used.items():
        for name, one in sets.items():
            for prompt, ids in zip(one.names, one.ids, strict=True):
                yield {"model": model, "prompts": name, "prompt": prompt, "ids": list(ids)}
