"""Needles lie where they should, once; answers count only if every digit is right."""

import random
import re

import pytest

from capax import LLM, SamplingParams
from capax.errors import ConfigError
from capax.measuring.needles import (
    MAX_ANSWER_TOKENS,
    QUESTION_ROOM,
    Haystack,
    Question,
    answers,
    is_right,
    made_sentence,
    multi_needles,
    n_right,
    passkeys,
    sentences_of,
)
from tests.models import gguf_model

TEXT = "= Rivers =\n" + " ".join(
    f"The {word} river ran past the mill, and {word} boats went by." for word in "abcdefghij" * 40
)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(
        gguf_model("llama", encoding="Q8_0", max_position_embeddings=4096),
        kv="f32",
        threads=1,
        ctx_size=2048 + QUESTION_ROOM,
    )


@pytest.mark.parametrize("text", [TEXT, None])
def test_pass_keys_lie_at_stratified_depths(llm: LLM, text: str | None) -> None:
    n = 5
    for i, stack in enumerate(passkeys(llm.tokenizer, 2000, n, text=text, seed=3)):
        (question,) = stack.questions
        read = llm.tokenizer.decode(stack.ids)
        assert 1700 < len(stack.ids) <= 2000
        assert read.count(question.digits) == 2  # the needle says it twice
        assert question.depth == (i + 0.5) / n
        assert read.index("The pass key is") / len(read) == pytest.approx(question.depth, abs=0.08)


def test_many_needles_lie_in_a_stratum_each(llm: LLM) -> None:
    for stack in multi_needles(llm.tokenizer, 2000, 3, n_needles=4, text=TEXT):
        read = llm.tokenizer.decode(stack.ids)
        places = []
        for question in stack.questions:
            needle = question.text.strip() + " " + question.digits + "."
            assert read.count(needle) == 1
            places.append(read.index(needle) / len(read))
        assert [int(place * 4) for place in places] == [0, 1, 2, 3]
        assert len({q.digits for q in stack.questions}) == 4


def test_a_seed_makes_the_same_texts_again_and_another_one_others(llm: LLM) -> None:
    assert passkeys(llm.tokenizer, 500, 3) == passkeys(llm.tokenizer, 500, 3)
    assert passkeys(llm.tokenizer, 500, 3) != passkeys(llm.tokenizer, 500, 3, seed=1)


def test_fillers_differ_between_prompts(llm: LLM) -> None:
    first, second = passkeys(llm.tokenizer, 500, 2, text=TEXT)
    assert first.ids[:50] != second.ids[:50]


@pytest.mark.parametrize(
    ("answer", "right"),
    [(" 12345.", True), ("12345", True), (" the key 12345 of", True), (" 123456", False),
     (" 1234", False), (" 54321 12345", False), ("", False), (" 12 345", False)],
)  # fmt: skip
def test_only_all_digits_and_no_more_are_right(answer: str, right: bool) -> None:
    assert is_right(answer, "12345") == right


def test_right_answers_are_counted_by_question() -> None:
    stack = Haystack([1], tuple(Question("?", digits, 0.5) for digits in ("11111", "22222")))
    assert n_right(stack, [" 11111.", " 11111."]) == 1


def test_questions_are_asked_of_copies_of_the_read_text(llm: LLM) -> None:
    (stack,) = multi_needles(llm.tokenizer, 200, 1, n_needles=2)
    said = answers(llm, "f32", stack)
    alone = [
        answers(llm, "f32", Haystack(stack.ids, (question,)))[0] for question in stack.questions
    ]
    assert said == alone


def test_an_answer_is_the_greedy_continuation(llm: LLM) -> None:
    (stack,) = passkeys(llm.tokenizer, 200, 1)
    question = llm.tokenizer.encode(stack.questions[0].text, add_special=False)
    params = SamplingParams(max_tokens=MAX_ANSWER_TOKENS, temperature=0.0)
    greedy = llm.generate(stack.ids + question, params).outputs[0].token_ids
    (said,) = answers(llm, "f32", stack)
    assert said
    assert llm.tokenizer.decode(greedy, at_start=False).startswith(said)


def test_texts_without_room_are_refused(llm: LLM) -> None:
    with pytest.raises(ConfigError, match="too few for a haystack of 2,000"):
        passkeys(llm.tokenizer, 2000, 1, text="One sentence. Another one.")
    with pytest.raises(ConfigError, match="100 tokens hides nothing"):
        passkeys(llm.tokenizer, 100, 1)
    with pytest.raises(ConfigError, match="99 needles are wanted"):
        multi_needles(llm.tokenizer, 500, 1, n_needles=99)


def test_sentences() -> None:
    assert sentences_of("= Head =\n\nOne. Two is it?  'Three!' rest\n# x") == [
        "One.", "Two is it?", "'Three!'", "rest",
    ]  # fmt: skip
    rng = random.Random(0)
    made = [made_sentence(rng) for _ in range(200)]
    assert all(re.fullmatch(r"[A-Z][a-z ,]+\.", sentence) for sentence in made)
    assert len(set(made)) > 150
