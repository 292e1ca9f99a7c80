"""Prompts: each model's own template once, special tokens once, and answers in the tokens that the model would sample."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ka2l_ray.config import PromptConfig
from ka2l_ray.models.prompt_view import view_prompt
from ka2l_ray.models.prompts import Prompter
from ka2l_ray.world.facts import World

QUESTION = "What is the occupation of Quegrerk?"
CORPUS = [f"Question: {QUESTION}\nAnswer: medical doctor", "Where was Fra born? the city of Quast", "Answer briefly."]
EXAMPLES = [("Where was Fra born?", "Quast"), ("Who employs Fra?", "Prox Incorporated")]

# Templates as published models have them, cut down to their way with special tokens.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
GLM = (
    "<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_level_tokenizer(single: str, chat_template: str | None = None, eos: str = "</s>") -> PreTrainedTokenizerFast:
    """GPT-2-like; ``single`` says which special tokens its post-processor puts around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos)
    fast.chat_template = chat_template
    return fast


def sentence_piece_tokenizer(chat_template: str | None = None) -> LlamaTokenizer:
    """Llama-2's: a space is ``▁``, and a text's first word gets one."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    characters = sorted({c for text in [*CORPUS, INST, PHI, GLM] for c in text})
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(special_tokens=special, initial_alphabet=characters, show_progress=False, vocab_size=1000)
    )
    model = json.loads(trained.to_str())["model"]
    tokenizer = LlamaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<sop>"]})
    tokenizer.chat_template = chat_template
    return tokenizer


def whole_text(prompter: Prompter, answer: str) -> list[int]:
    """Tokens of prompt, answer and end, encoded as one text."""
    if prompter.uses_chat_template:
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
        text = prompter.tokenizer.apply_chat_template(messages, tokenize=False)
        end = "<|end|>" if "<|end|>" in text else ""  # Phi's template closes the whole conversation too
        text = text[: text.rindex(end) + len(end)] if end else text.rstrip("\n")
        return prompter.tokenizer.encode(text, add_special_tokens=False)
    text = prompter.prompt(QUESTION)
    ids = prompter.tokenizer.encode(f"{text} {answer}")
    return ids if ids[-1] == prompter.tokenizer.eos_token_id else [*ids, prompter.tokenizer.eos_token_id]


def test_bundled_student_is_asked_in_its_own_template(tokenizer: PreTrainedTokenizerBase) -> None:
    prompter = Prompter(tokenizer, PromptConfig(instruction=""))
    assert prompter.prompt(QUESTION) == f"<s>{QUESTION}\n"
    ids = prompter.encode(prompter.prompt(QUESTION))
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids) == f"<s>{QUESTION}\n"


def test_plain_prompt_has_instruction_examples_and_question(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    prompter = Prompter(plain_tokenizer, PromptConfig(instruction="Answer briefly.", examples=EXAMPLES))
    assert prompter.prompt(QUESTION) == (
        "Answer briefly.\n\nQuestion: Where was Fra born?\nAnswer: Quast\n\n"
        "Question: Who employs Fra?\nAnswer: Prox Incorporated\n\n"
        "Question: What is the occupation of Quegrerk?\nAnswer:"
    )


def test_plain_prompt_without_instruction_is_the_question_alone(plain_tokenizer: PreTrainedTokenizerBase) -> None:
    assert Prompter(plain_tokenizer, PromptConfig(instruction="")).prompt(QUESTION) == f"Question: {QUESTION}\nAnswer:"


def test_never_leaves_the_chat_template_out(tokenizer: PreTrainedTokenizerBase) -> None:
    prompter = Prompter(tokenizer, PromptConfig(instruction="", chat_template="never"))
    assert not prompter.uses_chat_template
    assert prompter.prompt(QUESTION) == f"Question: {QUESTION}\nAnswer:"


def test_chat_prompt_has_system_message_examples_as_turns_and_generation_prompt() -> None:
    prompter = Prompter(
        byte_level_tokenizer("<s> $A", CHATML), PromptConfig(instruction="Answer briefly.", examples=EXAMPLES[:1])
    )
    assert prompter.prompt(QUESTION) == (
        "<|im_start|>system\nAnswer briefly.<|im_end|>\n<|im_start|>user\nWhere was Fra born?<|im_end|>\n"
        f"<|im_start|>assistant\nQuast<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_an_empty_instruction_is_no_system_message() -> None:
    prompter = Prompter(byte_level_tokenizer("$A", CHATML), PromptConfig(instruction=""))
    assert "system" not in prompter.prompt(QUESTION)


def test_bos_is_not_doubled_where_template_and_tokenizer_both_add_it() -> None:
    """As in Llama 3: the template writes BOS, the post-processor would add another."""
    tokenizer = byte_level_tokenizer("<s> $A", INST)
    prompter = Prompter(tokenizer, PromptConfig(instruction=""))
    ids = prompter.encode(prompter.prompt(QUESTION))
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert [*ids, *prompter.encode_answer(QUESTION, "Quast")].count(tokenizer.bos_token_id) == 1


def test_a_plain_prompt_gets_the_bos_that_its_tokenizer_adds() -> None:
    tokenizer = byte_level_tokenizer("<s> $A")
    prompter = Prompter(tokenizer, PromptConfig())
    ids = prompter.encode(prompter.prompt(QUESTION))
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.bos_token_id not in prompter.encode_answer(QUESTION, "Quast")
    assert view_prompt(prompter, QUESTION).text.startswith("<s>Answer the question")


def test_a_prompt_stays_open_where_the_tokenizer_closes_every_text() -> None:
    tokenizer = byte_level_tokenizer("<s> $A </s>")
    prompter = Prompter(tokenizer, PromptConfig())
    assert tokenizer.eos_token_id not in prompter.encode(prompter.prompt(QUESTION))
    assert prompter.encode_answer(QUESTION, "Quast").count(tokenizer.eos_token_id) == 1


TOKENIZERS = {
    "byte-level, plain": lambda: byte_level_tokenizer("<s> $A"),
    "byte-level, plain, closing": lambda: byte_level_tokenizer("<s> $A </s>"),
    "byte-level, chatml": lambda: byte_level_tokenizer("$A", CHATML, eos="<|im_end|>"),
    "byte-level, [INST]": lambda: byte_level_tokenizer("<s> $A", INST),
    "sentence-piece, plain": lambda: sentence_piece_tokenizer(),
    "sentence-piece, [INST]": lambda: sentence_piece_tokenizer(INST),
    "sentence-piece, Phi": lambda: sentence_piece_tokenizer(PHI),
}


@pytest.mark.parametrize("name", list(TOKENIZERS))
@pytest.mark.parametrize("answer", ["Quast", "medical doctor", "the city of Quast"])
def test_tokens_of_prompt_and_answer_are_those_of_the_whole(name: str, answer: str) -> None:
    prompter = Prompter(TOKENIZERS[name](), PromptConfig(instruction=""))
    prompt_ids, answer_ids = prompter.encode(prompter.prompt(QUESTION)), prompter.encode_answer(QUESTION, answer)
    assert [*prompt_ids, *answer_ids] == whole_text(prompter, answer)


def test_tokens_of_the_students_prompt_and_answer_are_those_of_the_whole(
    tokenizer: PreTrainedTokenizerBase, world: World
) -> None:
    prompter = Prompter(tokenizer, PromptConfig(instruction=""))
    for fact in world.facts[::100]:
        question = fact.question(fact.pool_phrasing)
        for form in fact.value.forms:
            whole = tokenizer.encode(f"<s>{question}\n{form}</s>", add_special_tokens=False)
            assert [*prompter.encode(prompter.prompt(question)), *prompter.encode_answer(question, form)] == whole


@pytest.mark.parametrize(
    ("template", "eos", "end"),
    [
        (None, "</s>", "</s>"),
        (INST, "</s>", "</s>"),
        (CHATML, "<|im_end|>", "<|im_end|>"),
        (CHATML, "</s>", "<|im_end|>"),
    ],
)
def test_an_answer_ends_with_the_token_that_ends_a_turn(template: str | None, eos: str, end: str) -> None:
    tokenizer = byte_level_tokenizer("<s> $A", template, eos)
    ids = Prompter(tokenizer, PromptConfig(instruction="")).encode_answer(QUESTION, "Quast")
    end_id = tokenizer.convert_tokens_to_ids(end)
    assert ids.count(end_id) == 1
    assert ids[-1] == end_id
    assert tokenizer.decode(ids[:-1]).strip() == "Quast"


def test_an_answer_has_an_end_where_the_template_writes_none() -> None:
    """GLM-4's template ends a turn with the next turn's opening token, so the last one stays open."""
    tokenizer = sentence_piece_tokenizer(GLM)
    ids = Prompter(tokenizer, PromptConfig(instruction="")).encode_answer(QUESTION, "Quast")
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|user|>")
