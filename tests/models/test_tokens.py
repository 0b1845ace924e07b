import pytest
import torch

from mechsafety.core.errors import PositionError, PromptError, TemplateError
from mechsafety.core.positions import Position, TokenSpans
from mechsafety.data.chat_template import ChatFormat
from mechsafety.data.prompts import Prompt
from mechsafety.models.tokens import (
    PADDING_SHARE,
    TokenizedPrompts,
    batched_rows,
    batches,
    encode,
    from_ids,
    pad,
    tokenize,
)
from tests.models.families import TEMPLATE, word_tokenizer

PROMPTS = [Prompt.of("describe a tree ."), Prompt.of("how do you make the bread ?")]


def test_the_span_of_the_instruction_is_the_instruction() -> None:
    tokenizer = word_tokenizer()
    found = tokenize(tokenizer, PROMPTS, ChatFormat())
    for prompt, ids, span in zip(PROMPTS, found.ids, found.spans, strict=True):
        start, stop = span.instruction
        assert tokenizer.decode(list(ids[start:stop])) == prompt.instruction
        assert tokenizer.decode(list(ids[stop:])) == "| bot :"
    assert found.positions(Position("eoi")) == tuple(Position("eoi", k) for k in (-3, -2, -1))
    assert found.names == tuple(p.id for p in PROMPTS)


def test_the_template_is_not_given_a_second_bos_and_bare_text_gets_one() -> None:
    chat = tokenize(word_tokenizer(), PROMPTS, ChatFormat())
    bare = tokenize(word_tokenizer(), PROMPTS, ChatFormat(chat_template="none"))
    assert [ids.count(1) for ids in chat.ids] == [1, 1]
    assert [ids.count(1) for ids in bare.ids] == [1, 1]
    assert bare.spans[0].instruction == (1, len(bare.ids[0]))
    with pytest.raises(TemplateError, match=r"2 of 2 prompts begin with BOS \(id 1\) twice"):
        tokenize(word_tokenizer("{{ bos_token }} " + TEMPLATE), PROMPTS, ChatFormat())


def test_a_token_that_merges_with_the_instructions_end_is_instruction() -> None:
    glued = TEMPLATE.replace("{{ m['content'] }} |", "{{ m['content'] }}:")
    found = encode(word_tokenizer(glued), PROMPTS, ChatFormat())
    _, stop = found.spans[0].instruction
    assert found.ids[0][stop - 1] == 3  # ".:" is one unknown word that holds the full stop
    assert len(found.ids[0]) - stop == 2


def test_prompts_with_unequal_template_ends_have_no_common_eoi() -> None:
    uneven = TokenizedPrompts(
        ((1, 2, 3), (1, 2, 3)), (TokenSpans(3, (0, 2)), TokenSpans(3, (0, 1))), ("a", "b")
    )
    with pytest.raises(PositionError, match=r"end with 1 to 2 template tokens.*'eoi\[-1\]'"):
        uneven.positions(Position("eoi"))
    assert uneven.positions(Position("last")) == (Position("last"),)


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_token_of_every_prompt_is_in_one_batch_where_the_offsets_say(side: str) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (37,), generator=generator).tolist()
    ids = [torch.randint(3, 50, (n,), generator=generator).tolist() for n in lengths]
    seen: dict[int, list[int]] = {}
    for batch in batches(from_ids(ids), batch_tokens=40, side=side):  # pyright: ignore
        assert batch.ids.numel() <= 40
        assert batch.ids.shape[1] == int(batch.attention_mask.sum(-1).max())
        for row, name in enumerate(batch.rows.tolist()):
            start, n = int(batch.offsets[row]), len(ids[name])
            real = batch.attention_mask[row].bool()
            assert real[start : start + n].all()
            assert int(real.sum()) == n
            assert batch.position_ids[row, start : start + n].tolist() == list(range(n))
            seen[name] = batch.ids[row, start : start + n].tolist()
    assert seen == dict(enumerate(ids))


@pytest.mark.parametrize("new_tokens", [0, 5])
@pytest.mark.parametrize("batch_tokens", [1, 20, 640, 2048])
def test_no_batch_is_too_large_or_padded_too_much_and_every_prompt_is_in_one(
    batch_tokens: int, new_tokens: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 65, (173,), generator=generator).tolist()
    prompts = from_ids([[5] * n for n in lengths])
    found = batched_rows(prompts, batch_tokens, new_tokens)
    assert sorted(row for rows in found for row in rows) == list(range(len(lengths)))
    assert any(len(rows) > 1 for rows in found) == (batch_tokens > 1)
    ordered = [lengths[row] for rows in found for row in rows]
    assert ordered == sorted(lengths, reverse=True)  # what does not fit fails at once
    most = PADDING_SHARE * batch_tokens * (1 + new_tokens)
    for number, rows in enumerate(found):
        some = [lengths[row] for row in rows]
        padding = sum(max(some) - n for n in some)
        assert len(some) == 1 or len(some) * (max(some) + new_tokens) <= batch_tokens
        assert padding <= most
        if number + 1 < len(found):
            # The next prompt had no place here: for room, or for the padding it would bring.
            more = max(some) - lengths[found[number + 1][0]]
            too_large = (len(some) + 1) * (max(some) + new_tokens) > batch_tokens
            assert too_large or padding + more > most


def test_padding_that_costs_more_than_a_pass_makes_a_pass_of_its_own() -> None:
    short, long = 6, 64
    prompts = from_ids([[5] * n for n in (long, short, long, *[short] * 20)])
    # 58 columns of padding for each short prompt, where 2048 / 64 are worth a pass.
    assert [len(rows) for rows in batched_rows(prompts, 2048)] == [2, 21]
    # A little of it is worth none.
    assert len(batched_rows(from_ids([[5] * n for n in (64, 60, 56, 52)]), 2048)) == 1


def test_a_prompt_longer_than_a_batch_goes_alone() -> None:
    found = list(batches(from_ids([[5] * 30, [6] * 3, [7] * 3]), batch_tokens=10))
    assert [b.rows.tolist() for b in found] == [[0], [1, 2]]


def test_answers_lengthen_prompts_and_leave_their_positions() -> None:
    found = tokenize(word_tokenizer(), PROMPTS, ChatFormat())
    joined = found.followed_by([(7, 7), (8,)])
    assert joined.ids[0] == (*found.ids[0], 7, 7)
    assert joined.spans == found.spans
    assert joined.hash != found.hash
    with pytest.raises(PromptError, match="2 prompts and 1 answers"):
        found.followed_by([(7,)])


def test_padding_never_moves_a_prompts_positions() -> None:
    left, right = (pad([[4, 5, 6], [7]], [0, 1], 0, side) for side in ("left", "right"))
    assert left.ids.tolist() == [[4, 5, 6], [0, 0, 7]]
    assert right.ids.tolist() == [[4, 5, 6], [7, 0, 0]]
    assert left.position_ids[1].tolist() == [0, 0, 0]
    assert right.position_ids[0].tolist() == [0, 1, 2]


def test_bad_input_to_tokenizing_is_refused_with_advice() -> None:
    with pytest.raises(PromptError, match="there is no prompt"):
        tokenize(word_tokenizer(), [], ChatFormat())
    with pytest.raises(TemplateError, match=r"no chat template.*chat_template: none"):
        tokenize(word_tokenizer(None), PROMPTS, ChatFormat())
    with pytest.raises(TemplateError, match="has no tokenizer"):
        tokenize(None, PROMPTS, ChatFormat())
    with pytest.raises(PromptError, match="at least one id"):
        from_ids([[1], []])
