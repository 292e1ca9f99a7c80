"""Think blocks: told from answers, whether their marks are special tokens, plain tokens or spelled out."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ka2l_ray.models.sampling import Answer, Generation
from ka2l_ray.models.thinking import NO_THINKING, Thinking, answer_start, closing_mark, split_answer

MARKS = ["<think>", "</think>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>"]
END = "</s>"
STRIP = Thinking(strip=True)
GPT_OSS = "<|channel|>analysis<|message|>It is\nin France.<|end|><|start|>assistant<|channel|>final<|message|>Paris"


def byte_tokenizer(marks: str) -> PreTrainedTokenizerFast:
    """A token a byte; the marks are ``special``, ``added`` or ``spelled`` out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    if marks != "spelled":
        fast.add_tokens([AddedToken(mark, special=marks == "special", normalized=False) for mark in MARKS])
    return fast


@pytest.fixture(scope="module", params=["special", "added", "spelled"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return byte_tokenizer(request.param)


def answered(tokenizer: PreTrainedTokenizerFast, said: str, thinking: Thinking, stop: tuple[str, ...] = ("\n",)) -> Generation:
    """A model's words, token after token, until the answer says that it has ended."""
    answer = Answer(stop, tokenizer, {tokenizer.eos_token_id}, thinking)
    for token in tokenizer.encode(said, add_special_tokens=False):
        if not answer.extend(token, 0.0):
            break
    return answer.finish()


@pytest.mark.parametrize(
    ("said", "text", "thought"),
    [
        ("Paris", "Paris", "none"),
        ("<think>\nhm\n</think>\n\nParis", "Paris", "closed"),
        ("hm\n</think>\n\nParis", "Paris", "closed"),  # the opening stands in the prompt
        ("<think>\n\n</think>\n\nParis", "Paris", "closed"),
        ("<think>a</think>b<think>c</think>Paris", "Paris", "closed"),
        ("<think>a</think>b<think>Paris", "", "open"),
        ("<think>\nParis, I think", "", "open"),
        (GPT_OSS, "Paris", "closed"),
        ("<|channel|>final<|message|>Paris", "Paris", "closed"),
        ("<|channel|>analysis<|message|>Paris", "", "open"),
    ],
)
def test_the_answer_is_what_comes_behind_the_last_think_block(
    tokenizer: PreTrainedTokenizerFast, said: str, text: str, thought: str
) -> None:
    found, state = split_answer(tokenizer.encode(said + END, add_special_tokens=False), tokenizer)
    assert (found.strip(), state) == (text, thought)


def test_a_mark_within_an_answer_is_a_word() -> None:
    for said in ("Use the <think> tag", "the element <my:thinking>", "<b><reasoning>"):
        assert answer_start(said) == 0
    assert answer_start("\n <think>hm") is None
    assert answer_start("<|start|>assistant<|channel|>analysis<|message|>hm") is None


def test_a_block_that_the_prompt_opens_is_open_until_it_is_closed() -> None:
    assert answer_start("Paris, I think", opened=True) is None
    assert answer_start("hm</think>Paris", opened=True) == len("hm</think>")
    assert answer_start("Paris") == 0


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>", "</think>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel>thought", "<channel|>"),
        ("<|channel|>analysis", "<|channel|>final<|message|>"),
        ("◁think▷", "◁/think▷"),
    ],
)
def test_marks_of_other_families(opening: str, closing: str) -> None:
    assert closing_mark(opening) == closing
    assert answer_start(f"{opening}hm") is None
    assert answer_start(f"{opening}hm{closing}Paris") == len(f"{opening}hm{closing}")


@pytest.mark.parametrize(
    ("said", "thinking"),
    [
        ("<think>\nIs it\nParis?\n</think>\n\nParis\nWhere next", STRIP),
        ("\nIs it\nParis?\n</think>\n\nParis\nWhere next", Thinking(strip=True, opened=True)),
        ("Paris\nWhere next", STRIP),
        (GPT_OSS + "\nWhere next", STRIP),
        ("Paris\nWhere next", NO_THINKING),
    ],
)
def test_a_stop_text_counts_behind_the_think_block_only(
    tokenizer: PreTrainedTokenizerFast, said: str, thinking: Thinking
) -> None:
    found = answered(tokenizer, said, thinking)
    assert (found.text, found.finish_reason) == ("Paris", "stop")
    assert tokenizer.decode(found.token_ids) == said.removesuffix("Where next")  # the tokens are whole


def test_a_long_thought_is_found_closed_wherever_the_next_stop_comes(tokenizer: PreTrainedTokenizerFast) -> None:
    thought = "<think>" + "".join(f"step {i}\n" for i in range(60)) + "</think>"
    answer = "Paris " * 40
    assert answered(tokenizer, f"{thought}{answer}\nWhere next", STRIP).text == answer.strip()


def test_an_answer_that_ends_inside_its_block_is_empty(tokenizer: PreTrainedTokenizerFast) -> None:
    found = answered(tokenizer, "<think>\nIs it Paris?\nIt may", STRIP)
    assert (found.text, found.finish_reason, found.thought) == ("", "length", "open")
    opened = answered(tokenizer, "Is it Paris?\nIt may", Thinking(strip=True, opened=True))
    assert (opened.text, opened.thought) == ("", "open")


def test_without_leave_to_think_a_stop_text_cuts_the_block_and_leaves_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    found = answered(tokenizer, "<think>\nIs it Paris?\n</think>\n\nParis", NO_THINKING)
    assert (found.text, found.thought) == ("", "open")
    assert "Paris?" in tokenizer.decode(found.token_ids) or len(found.token_ids) < 12
    assert "</think>" not in tokenizer.decode(found.token_ids)


@pytest.mark.parametrize(("before", "after"), itertools.product(["", "hm"], ["Paris", " Paris"]))
def test_a_token_that_holds_more_than_the_mark_loses_none_of_the_answer(before: str, after: str) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, ">P"])}
    trained = Tokenizer(models.BPE(vocab=vocabulary, merges=[(">", "P")]))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, eos_token=END)
    ids = tokenizer.encode(f"{before}</think>{after}", add_special_tokens=False)
    assert split_answer(ids, tokenizer) == (after, "closed")
