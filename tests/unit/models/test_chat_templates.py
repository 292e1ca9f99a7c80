"""Prompts in the chat templates of published models: what instruction, answer, think block and date become there."""

# ruff: noqa: RUF001 (DeepSeek's marks are written with a wide bar)

from __future__ import annotations

import logging
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from transformers import MistralConfig, Qwen2Config

from ka2l_ray.config import ModelConfig, PromptConfig
from ka2l_ray.config_files import load_preset, preset_names, validate
from ka2l_ray.errors import UserError
from ka2l_ray.models import chat_templates, prompts
from ka2l_ray.models.prompt_view import view_prompt
from ka2l_ray.models.prompts import Prompter, fixed_case, load_prompter, without_thinking
from ka2l_ray.models.sampling import Generation
from ka2l_ray.semantics.judges.llm import read_yes_or_no
from ka2l_ray.uncertainty.p_true import encode
from tests.unit.models.published import PUBLISHED, published_tokenizer

ASKED, SAID = "Who wrote Hamlet?", "William Shakespeare"
PRESETS = [name for name in preset_names() if name in PUBLISHED]
BRIEF = "Answer the question as briefly as you can."


def prompter_of(model: str, **keys: Any) -> Prompter:
    """With the model's own preset, if it has one, and ``keys`` over it."""
    preset = load_preset(model).get("prompt", {}) if model in PRESETS else {}
    return Prompter(published_tokenizer(model), PromptConfig(**{**preset, **keys}))


def row_text(prompter: Prompter) -> str:
    """A training row, decoded."""
    ids = [*prompter.encode(prompter.prompt(ASKED)), *prompter.encode_answer(ASKED, SAID)]
    return prompter.tokenizer.decode(ids, skip_special_tokens=False)


def test_the_nine_models_of_the_paper_have_presets_with_a_template_here() -> None:
    assert len([name for name in PRESETS if "finetune" in load_preset(name)]) == 9


@pytest.mark.parametrize("model", PRESETS)
def test_a_preset_starts_on_its_models_own_template(model: str) -> None:
    prompter = prompter_of(model)
    prompter.check()
    assert prompter.uses_chat_template
    answer = prompter.encode_answer(ASKED, SAID)
    assert prompter.tokenizer.convert_ids_to_tokens(answer[-1]) == PUBLISHED[model].end
    assert prompter.tokenizer.decode(answer[:-1]).strip() == SAID
    assert BRIEF in prompter.prompt(ASKED)


@pytest.mark.parametrize("model", sorted(set(PRESETS) - {"deepseek-r1-distill-qwen-7b", "llama-2-7b-chat"}))
def test_a_training_row_is_the_template_with_its_answer_up_to_the_end_of_the_turn(model: str) -> None:
    """But for R1's, which drops its think block, and Llama-2's, which writes a space that no answer has."""
    prompter = prompter_of(model)
    messages = [*prompter._messages(ASKED, prompter._role), {"role": "assistant", "content": SAID}]
    whole = prompter._template.render(messages, generation=False)
    ids = prompter.tokenizer.encode(whole, add_special_tokens=False)
    row = [*prompter.encode(prompter.prompt(ASKED)), *prompter.encode_answer(ASKED, SAID)]
    if model.startswith("glm"):  # a turn ends where the next one begins
        assert ids == row[:-1]
    else:
        assert ids[: len(row)] == row


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("mistral-7b-instruct-v0.3", f"<s>[INST] {BRIEF}\n\n{ASKED}[/INST] {SAID}</s>"),
        (
            "gemma-2-9b-it",
            f"<bos><start_of_turn>user\n{BRIEF}\n\n{ASKED}<end_of_turn>\n<start_of_turn>model\n{SAID}<end_of_turn>",
        ),
        (
            "deepseek-r1-distill-qwen-7b",
            f"<｜begin▁of▁sentence｜>{BRIEF}<｜User｜>{ASKED}<｜Assistant｜><think>\n\n</think>\n\n{SAID}<｜end▁of▁sentence｜>",
        ),
        (
            "qwen3-8b",
            f"<|im_start|>system\n{BRIEF}<|im_end|>\n<|im_start|>user\n{ASKED}<|im_end|>\n"
            f"<|im_start|>assistant\n<think>\n\n</think>\n\n{SAID}<|im_end|>",
        ),
        (
            "glm-4.5-air",
            f"[gMASK]<sop><|system|>\n{BRIEF}<|user|>\n{ASKED}/nothink<|assistant|>\n<think></think>\n{SAID}<|user|>",
        ),
    ],
)
def test_training_rows_to_the_letter(model: str, text: str) -> None:
    assert row_text(prompter_of(model)) == text


def test_a_system_message_stays_one_where_the_template_keeps_it_in_its_place() -> None:
    assert "<<SYS>>\n" + BRIEF + "\n<</SYS>>" in prompter_of("llama-2-7b-chat").prompt(ASKED)
    assert f"# Instructions\n\n{BRIEF}" in prompter_of("gpt-oss-20b").prompt(ASKED)
    as_user = prompter_of("llama-2-7b-chat", role="user")
    assert as_user.prompt(ASKED) == f"<s>[INST] {BRIEF}\n\n{ASKED} [/INST]"


def test_the_instruction_begins_the_first_turn_where_examples_come_before_the_question() -> None:
    prompter = prompter_of("mistral-7b-instruct-v0.3", examples=[("Who wrote Faust?", "Goethe")])
    assert prompter.prompt(ASKED) == f"<s>[INST] {BRIEF}\n\nWho wrote Faust?[/INST] Goethe</s>[INST] {ASKED}[/INST]"


@pytest.mark.parametrize(
    ("model", "reason"), [("gemma-2-9b-it", "refuses one"), ("mistral-7b-instruct-v0.3", "moves it once an answer follows")]
)
def test_a_system_role_that_the_template_does_not_keep_is_refused(model: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"prompt\.role is system, and the chat template {reason}.*set prompt\.role: auto"):
        prompter_of(model, role="system").check()


def test_a_role_without_a_chat_template_is_refused() -> None:
    with pytest.raises(UserError, match=r"prompt\.role is user, and no chat template is used"):
        prompter_of("llama-2-7b-chat", role="user", chat_template="never").check()


def test_a_template_that_leaves_the_question_out_is_refused() -> None:
    prompter = prompter_of("qwen2.5-7b-instruct")
    prompter.tokenizer.chat_template = "{{ messages[0].role }}"
    with pytest.raises(UserError, match=r"leaves the question out; set prompt\.chat_template: never"):
        prompter.check()


def test_contents_are_parts_where_a_template_reads_parts_only() -> None:
    """As SmolVLM's."""
    prompter = prompter_of("qwen2.5-7b-instruct")
    prompter.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    assert row_text(prompter) == f"system: {BRIEF}<|im_end|>\nuser: {ASKED}<|im_end|>\nassistant: {SAID}<|im_end|>"


def test_a_turns_header_is_written_where_the_template_does_not_write_it_for_generation() -> None:
    prompter = prompter_of("qwen1.5-7b-chat", instruction="")
    prompter.tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    assert prompter.prompt(ASKED) == f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    assert row_text(prompter).endswith(f"<|im_start|>assistant\n{SAID}<|im_end|>")


THOUGHTFUL = ["qwen3-8b", "qwen3.6-35b-a3b", "glm-4.5-air", "gpt-oss-20b", "deepseek-r1-distill-qwen-7b"]


@pytest.mark.parametrize("model", THOUGHTFUL)
def test_a_model_that_would_think_is_refused_and_either_key_that_is_named_helps(model: str) -> None:
    loud = prompter_of(model, template_arguments={}, prefill="")
    with pytest.raises(UserError, match=r"prompt\.template_arguments.*prompt\.prefill.*prompt\.thinking: strip") as refusal:
        loud.check()
    prefill = re.search(r"prompt\.prefill: '(.*?)',", str(refusal.value))
    assert prefill is not None
    prompter_of(model, template_arguments={}, prefill=prefill[1].encode().decode("unicode_escape")).check()
    if switch := re.search(r"template_arguments: \{(\w+): false\}", str(refusal.value)):
        prompter_of(model, template_arguments={switch[1]: False}, prefill="").check()
    prompter_of(model, template_arguments={}, prefill="", thinking="strip").check()


@pytest.mark.parametrize("model", THOUGHTFUL)
def test_where_thinking_is_let_be_a_training_row_thinks_nothing(model: str) -> None:
    prompter = prompter_of(model, template_arguments={}, prefill="", thinking="strip")
    assert prompter.thinking.opened == (model in ("qwen3.6-35b-a3b", "deepseek-r1-distill-qwen-7b"))
    said = row_text(prompter).split(ASKED)[1]
    assert re.search(rf"(<think>\s*</think>|<\|channel\|>final<\|message\|>)\s*{SAID}", said)


@pytest.mark.parametrize(("thoughts", "refused"), [(0, False), (2, False), (3, True)])
def test_the_odd_answer_that_thinks_does_not_end_a_run(thoughts: int, refused: bool) -> None:
    answers = [[Generation("Paris", [1], [0.0], "stop", "open" if i < thoughts else "none")] for i in range(20)]
    with pytest.raises(UserError, match="3 of 20 answers begin with a think block") if refused else nullcontext():
        prompter_of("smollm3-3b").check_answers(answers, max_tokens=8)


@pytest.mark.parametrize("model", [*THOUGHTFUL, "smollm3-3b", "llama-2-7b-chat"])
def test_a_judge_answers_at_once(model: str) -> None:
    prompter = without_thinking(published_tokenizer(model), PromptConfig(instruction=""))
    prompter.check()  # which refuses a prompt that thoughts would follow
    assert not prompter.thinking.opened


def test_a_judges_thoughts_are_no_verdict() -> None:
    assert read_yes_or_no("<think>is it no? yes</think>\n\nNo.") == read_yes_or_no("no")
    assert read_yes_or_no("<think>yes, it may").unparsable


@pytest.mark.parametrize(
    ("model", "date"),
    [
        ("llama-3.2-3b-instruct", "Today Date: 26 Jul 2024"),
        ("mistral-small-24b", "[SYSTEM_PROMPT]"),
        ("smollm3-3b", "Today Date: 26 July 2024"),
        ("gpt-oss-20b", "Current date: 2024-07-26"),
    ],
)
def test_a_prompt_is_the_same_on_every_day(model: str, date: str) -> None:
    prompter = prompter_of(model)
    text = prompter.prompt(ASKED)
    assert date in text
    assert "2026" not in text


def test_a_template_that_makes_up_a_system_message_has_its_date_pinned_too() -> None:
    assert "The current date is 2024-07-26" in prompter_of("mistral-small-24b", instruction="").prompt(ASKED)


def test_a_date_can_be_given_where_the_template_takes_one() -> None:
    prompter = prompter_of("llama-3.2-3b-instruct", template_arguments={"date_string": "1 Jan 2020"})
    assert "Today Date: 1 Jan 2020" in prompter.prompt(ASKED)


@pytest.mark.parametrize("named", [False, True])
def test_arguments_that_a_template_does_not_read_are_warned_of(named: bool, caplog: pytest.LogCaptureFixture) -> None:
    prompter = prompter_of("smollm3-3b", template_arguments={"enable_thinking": False, "enable_thinkin": False})
    if named:
        prompter.tokenizer.chat_template = {"default": prompter.tokenizer.chat_template, "tool_use": "{{ enable_thinkin }}"}
    with caplog.at_level(logging.WARNING):
        prompter.check()
    assert [record.message for record in caplog.records] == [
        "prompt.template_arguments: no chat template reads 'enable_thinkin'; it has no effect"
    ]


def test_an_argument_that_is_ours_to_give_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"prompt\.template_arguments: 'add_generation_prompt' is what the template is rendered with"
    ):
        validate(
            {
                "model": {"path": "m"},
                "pool": {"questions": "q"},
                "prompt": {"template_arguments": {"add_generation_prompt": False}},
            }
        )


def test_a_prefill_that_the_tokenizer_cannot_spell_is_refused() -> None:
    prompter = prompter_of("llama-2-7b-chat", prefill="<unk>")
    with pytest.raises(UserError, match=r"prompt\.prefill '<unk>': the tokenizer has no tokens for it"):
        prompter.check()


def test_a_mark_that_is_no_token_of_the_model_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        prompter_of("qwen2.5-7b-instruct", prefill="<|channel|>").check()
    assert "prompt.prefill: '<|channel|>' is no token of this model's; it is read as plain text" in caplog.text


@pytest.mark.parametrize(("prefill", "space"), [("The author is", " "), ("Author: ", ""), ("", "")])
def test_an_answer_goes_on_from_a_prefilled_beginning(prefill: str, space: str) -> None:
    prompter = prompter_of("llama-3.1-8b-instruct", prefill=prefill)
    assert prompter.prompt(ASKED).endswith(f"assistant<|end_header_id|>\n\n{prefill}")
    assert row_text(prompter).endswith(f"\n\n{prefill}{space}{SAID}<|eot_id|>")


def test_p_true_is_asked_behind_the_prefilled_block() -> None:
    prompter = prompter_of("deepseek-r1-distill-qwen-7b")
    ids, true, false = encode(prompter, "Is it?")
    decode = prompter.tokenizer.decode
    assert decode(ids) == "<｜begin▁of▁sentence｜><｜User｜>Is it?<｜Assistant｜><think>\n\n</think>\n\n"
    assert (decode(true), decode(false)) == ("A", "B")


def test_what_is_seen_of_a_prompt_is_what_the_model_reads() -> None:
    prompter = prompter_of("phi-3.5-mini-instruct")
    view = view_prompt(prompter, ASKED)
    assert view.token_ids == prompter.encode(prompter.prompt(ASKED))
    assert (view.end_of_turn, len(view.end_of_turn_ids)) == ("<|end|>", 1)
    assert "a training row ends its answer with '<|end|>'" in str(view)


def test_a_fixed_rendering_is_part_of_the_models_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and configuration equal, a library that renders otherwise: another key."""
    published_tokenizer("llama-3.2-3b-instruct").save_pretrained(tmp_path)
    MistralConfig(vocab_size=400).save_pretrained(tmp_path)
    model, prompt = ModelConfig(path=str(tmp_path)), PromptConfig()
    before = fixed_case(model, prompt)
    assert fixed_case(model, prompt) == before
    monkeypatch.setattr(chat_templates, "DATE", chat_templates.DATE.replace(year=2025))
    prompts._load_prompter.cache_clear()
    assert fixed_case(model, prompt) != before
    prompts._load_prompter.cache_clear()


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer there"):
        load_prompter(ModelConfig(path=str(tmp_path)), PromptConfig())
    Qwen2Config(vocab_size=400).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the tokenizer has 1 tokens, the model 400: its files .* are missing"):
        load_prompter(ModelConfig(path=str(tmp_path)), PromptConfig())


def test_mistrals_own_package_does_not_take_the_chat_template_away(tmp_path: Path) -> None:
    """It comes with vLLM; with it, transformers reads ``tekken.json`` where there is one, and knows no template then."""
    common = pytest.importorskip("mistral_common")
    published_tokenizer("mistral-small-24b").save_pretrained(tmp_path)
    MistralConfig(vocab_size=400).save_pretrained(tmp_path)
    (tmp_path / "tekken.json").symlink_to(Path(common.__file__).parent / "data" / "tekken_240911.json")
    prompter = load_prompter(ModelConfig(path=str(tmp_path)), PromptConfig())
    assert prompter.prompt(ASKED) == f"<s>[SYSTEM_PROMPT]{BRIEF}[/SYSTEM_PROMPT][INST]{ASKED}[/INST]"
