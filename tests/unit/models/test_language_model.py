"""The reference engine, held against transformers' own forward pass and generation, token by token and state by state."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ka2l_ray.config import FinetuneConfig, ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.finetuning.lora import add_lora
from ka2l_ray.models.adapters import check_adapter
from ka2l_ray.models.architecture import vocabulary_logits
from ka2l_ray.models.batching import batches_by_length
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.model_files import check_is_model, final_norm, model_dtype, model_identity
from ka2l_ray.models.sampling import Generation, Sampling, keep_likeliest, sample_tokens
from ka2l_ray.models.states import common_prefix
from ka2l_ray.seeds import derive_seed
from ka2l_ray.world.facts import World
from tests.reciting import save_reciting_model

ARCHITECTURES = ["student", "tiny_gpt2", "tiny_mistral"]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def language_model(request: pytest.FixtureRequest) -> LanguageModel:
    """The bundled student (Llama), and GPT-2 and sliding-window Mistral with random weights."""
    found = request.getfixturevalue(request.param)
    return found if isinstance(found, LanguageModel) else LanguageModel(ModelConfig(path=str(found)), device="cpu")


@pytest.fixture(scope="module")
def prompts(world: World, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Twelve prompts of the student, of 5 to 24 tokens, not in order of length."""
    texts = [f"<s>{fact.question(fact.test_phrasing)}\n" for fact in world.facts[:12]]
    texts[3] = f"<s>{' '.join(fact.question(0) for fact in world.facts[20:23])}\n"
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert len({len(row) for row in ids}) > 3
    return ids


def seeds_for(n: int, samples: int) -> list[list[int]]:
    return [[derive_seed("test", i, j) for j in range(samples)] for i in range(n)]


@torch.inference_mode()
def full_forward(language_model: LanguageModel, ids: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Transformers' own (logits_TV, hidden_states of every layer at the last position) of one unpadded text."""
    out = language_model.causal_lm(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return out.logits[0], [layer[0, -1] for layer in out.hidden_states]


def text_and_tokens(rows: list[list[Generation]]) -> list[list[tuple[str, list[int], str]]]:
    return [[(g.text, g.token_ids, g.finish_reason) for g in row] for row in rows]


def test_sampling_at_a_tiny_temperature_is_transformers_greedy_decoding(
    language_model: LanguageModel, prompts: list[list[int]]
) -> None:
    ours = language_model.generate(prompts, seeds_for(len(prompts), 1), [1e-6], max_tokens=10)
    for ids, (answer,) in zip(prompts, ours, strict=True):
        theirs = language_model.causal_lm.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False, max_new_tokens=10
        )
        assert answer.token_ids == theirs[0, len(ids) :].tolist()


def test_token_logprobs_are_those_of_a_forward_pass_over_the_whole_text(
    language_model: LanguageModel, prompts: list[list[int]]
) -> None:
    """Before temperature, whatever the temperature; prompts of several lengths in one batch."""
    answers = language_model.generate(prompts, seeds_for(len(prompts), 3), [1.0, 0.7, 1.5], max_tokens=8)
    for ids, row in zip(prompts, answers, strict=True):
        for answer in row:
            logits_TV, _ = full_forward(language_model, [*ids, *answer.token_ids])
            log_p_TV = logits_TV.log_softmax(-1)
            expected = [float(log_p_TV[len(ids) - 1 + i, token]) for i, token in enumerate(answer.token_ids)]
            assert answer.token_logprobs == pytest.approx(expected, abs=1e-4)


def test_samples_depend_on_their_own_seed_alone(language_model: LanguageModel, prompts: list[list[int]]) -> None:
    """Not on the batch, the order, or the other samples of the same prompt."""
    n, temperatures = len(prompts), [1.0] * 4
    seeds = seeds_for(n, 4)
    together = text_and_tokens(language_model.generate(prompts, seeds, temperatures, max_tokens=8, batch_tokens=10**6))
    assert len({tuple(tokens) for row in together for _, tokens, _ in row}) > n  # the samples differ
    alone = text_and_tokens(language_model.generate(prompts, seeds, temperatures, max_tokens=8, batch_tokens=1))
    assert alone == together
    order = np.random.default_rng(0).permutation(n).tolist()
    shuffled = language_model.generate([prompts[i] for i in order], [seeds[i] for i in order], temperatures, max_tokens=8)
    assert text_and_tokens(shuffled) == [together[i] for i in order]
    second = language_model.generate(prompts, [[row[1]] for row in seeds], [1.0], max_tokens=8)
    assert text_and_tokens(second) == [[row[1]] for row in together]


def test_the_same_seed_with_more_room_begins_the_same(student: LanguageModel, prompts: list[list[int]]) -> None:
    seeds = seeds_for(len(prompts), 2)
    short, long = (student.generate(prompts, seeds, [1.0, 1.0], max_tokens=n) for n in (2, 6))
    for a, b in zip((g for row in short for g in row), (g for row in long for g in row), strict=True):
        assert b.token_ids[: len(a.token_ids)] == a.token_ids


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_are_distributed_as_the_softmax(student: LanguageModel, world: World, temperature: float) -> None:
    """Chi-square at the 0.999 quantile; tokens expected fewer than five times are pooled."""
    fact = next(fact for fact in world.facts if fact.group == "unknown")
    prompt = student.tokenizer.encode(f"<s>{fact.question(fact.pool_phrasing)}\n", add_special_tokens=False)
    n = 4000
    (answers,) = student.generate([prompt], seeds_for(1, n), [temperature] * n, max_tokens=1)
    logits_TV, _ = full_forward(student, prompt)
    p = (logits_TV[-1].double() / temperature).softmax(-1).numpy()
    seen = np.bincount([g.token_ids[0] for g in answers], minlength=len(p))
    often = p * n >= 5
    expected = np.append(p[often] * n, p[~often].sum() * n)
    observed = np.append(seen[often], seen[~often].sum())
    assert often.sum() > 5  # the student does not know this, so there is something to test
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert statistic < chi2.ppf(0.999, len(expected) - 1)


@given(st.integers(2, 50), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 3.0]))
def test_sample_tokens_inverts_the_cumulative_distribution(n: int, seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(6, n, generator=generator) * 3
    logits_RV[:, 0] = -torch.inf
    uniform_R = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1 - 2**-30], dtype=torch.float64)
    how = Sampling.of_samples([temperature] * 6, None, None, logits_RV.device)
    token_R, logprob_R = sample_tokens(logits_RV, uniform_R, how)
    p_RV = (logits_RV.double() / temperature).softmax(-1)
    cdf_RV = p_RV.cumsum(-1)
    for row, token in enumerate(token_R.tolist()):
        assert p_RV[row, token] > 0  # a masked token is never drawn
        below = float(cdf_RV[row, token - 1])
        assert below - 1e-6 <= float(uniform_R[row]) <= float(cdf_RV[row, token]) + 1e-6
    torch.testing.assert_close(logprob_R, logits_RV.log_softmax(-1)[torch.arange(6), token_R])


@settings(max_examples=30)
@given(st.integers(2, 300), st.integers(0, 2**32 - 1), st.booleans())
def test_top_k_and_top_p_keep_the_tokens_that_transformers_keeps(n: int, seed: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_RV = torch.randn(6, n, generator=generator) * 3
    if ties:
        logits_RV = logits_RV.round()  # equal at the k-th place: all of them stay
    temperatures, top_ks = [1.0, 0.7, 1.0, 2.0, 1.0, 0.1], [0, 5, 1, 50, 3, 0]
    top_ps = [0.9, 1.0, 0.5, 0.9, 1.0, 1.0] if not ties else [1.0] * 6
    how = Sampling.of_samples(temperatures, top_ps, top_ks, logits_RV.device)
    ours_RV = keep_likeliest(logits_RV / how.temperature_S[:, None], how)
    for row, (temperature, top_k, top_p) in enumerate(zip(temperatures, top_ks, top_ps, strict=True)):
        theirs = TemperatureLogitsWarper(temperature)(None, logits_RV[row : row + 1])
        theirs = TopKLogitsWarper(top_k)(None, theirs) if top_k else theirs
        theirs = TopPLogitsWarper(top_p)(None, theirs) if top_p < 1 else theirs
        assert torch.equal(ours_RV[row], theirs[0])


def test_filtered_answers_hold_likely_tokens_only_and_bear_the_models_own_log_probabilities(
    language_model: LanguageModel, prompts: list[list[int]]
) -> None:
    seeds = seeds_for(len(prompts), 4)
    drawn = language_model.generate(prompts, seeds, [1.0] * 4, max_tokens=4, top_ks=[1, 5, 0, 0], top_ps=[1.0, 1.0, 0.3, 1.0])
    free = language_model.generate(prompts, seeds, [1.0] * 4, max_tokens=4)
    greedy = language_model.generate(prompts, [row[:1] for row in seeds], [1e-6], max_tokens=4)
    assert [row[0].token_ids for row in drawn] == [row[0].token_ids for row in greedy]
    assert [row[3] for row in drawn] == [row[3] for row in free], "a sample's filters are its own"
    assert [row[1].token_ids for row in drawn] != [row[1].token_ids for row in free]
    for prompt, row in zip(prompts, drawn, strict=True):
        for generation in row[1:3]:
            log_p_TV, _ = full_forward(language_model, [*prompt, *generation.token_ids])
            log_p_TV = log_p_TV[len(prompt) - 1 : -1].log_softmax(-1)
            taken_T1 = torch.tensor(generation.token_ids)[:, None]
            assert generation.token_logprobs == pytest.approx(log_p_TV.gather(1, taken_T1).squeeze(1).tolist(), abs=1e-4)
            likelier_T = (log_p_TV > log_p_TV.gather(1, taken_T1)).sum(-1)
            before_T = (log_p_TV.exp() * (log_p_TV > log_p_TV.gather(1, taken_T1))).sum(-1)
            assert (likelier_T < 5).all() if generation is row[1] else (before_T < 0.3 + 1e-5).all()


@pytest.fixture
def reciting(tokenizer: PreTrainedTokenizerBase, tmp_path: Path):
    """A maker of models that answer any prompt with one text."""

    def make(text: str) -> LanguageModel:
        return LanguageModel(ModelConfig(path=save_reciting_model(tmp_path, tokenizer, text)), device="cpu")

    return make


def recite(language_model: LanguageModel, max_tokens: int = 40, stop: tuple[str, ...] = ()) -> Generation:
    prompt = language_model.tokenizer.encode("<s>Where was Fra born?", add_special_tokens=False)
    ((answer,),) = language_model.generate([prompt], [[0]], [1.0], max_tokens=max_tokens, stop=stop)
    return answer


def test_an_answer_ends_at_the_end_token(reciting) -> None:
    answer = recite(reciting(" the city of Quast"))
    assert (answer.text, answer.finish_reason) == ("the city of Quast", "stop")
    assert len(answer.token_ids) == len(answer.token_logprobs)
    assert answer.token_logprobs == pytest.approx([0.0] * len(answer.token_ids), abs=1e-6)


def test_an_answer_cut_by_max_tokens_says_length(reciting) -> None:
    model = reciting(" the city of Quast")
    answer = recite(model, max_tokens=2)
    assert answer.finish_reason == "length"
    assert len(answer.token_ids) == 2
    assert answer.text == model.tokenizer.decode(answer.token_ids).strip()


def test_an_end_token_at_the_last_place_is_a_stop(reciting) -> None:
    model = reciting(" the city of Quast")
    n = len(recite(model).token_ids)
    assert recite(model, max_tokens=n).finish_reason == "stop"
    assert recite(model, max_tokens=n - 1).finish_reason == "length"


@pytest.mark.parametrize(
    ("recited", "stop", "text"),
    [
        ("Paris\nWhere next", ("\n",), "Paris"),
        ("\n Paris", ("\n",), "Paris"),  # a leading line break is not yet the end of an answer
        ("Paris. And", (".", "\n"), "Paris"),
        ("Quick brown fox jumps", ("wn f",), "Quick bro"),  # a stop text across tokens
        ("Paris, Lyon; Bern", (";", ","), "Paris"),  # the earliest, whichever is listed first
        ("Paris, Lyon", ("!",), "Paris, Lyon"),
    ],
)
def test_an_answer_ends_before_a_stop_text(reciting, recited: str, stop: tuple[str, ...], text: str) -> None:
    answer = recite(reciting(recited), stop=stop)
    assert (answer.text, answer.finish_reason) == (text, "stop")


def test_a_stopped_answer_costs_no_token_beyond_its_stop(reciting) -> None:
    model = reciting("Paris\nWhere next")
    answer = recite(model, stop=("\n",))
    assert model.tokenizer.decode(answer.token_ids) == "Paris\n"
    assert len(answer.token_logprobs) == len(answer.token_ids)


def test_a_stop_text_may_be_a_character_of_several_tokens(reciting) -> None:
    answer = recite(reciting("Paris。And"), stop=("。",))
    assert answer.text == "Paris"


def test_a_finished_sample_does_not_hold_up_or_change_the_others(student: LanguageModel, world: World) -> None:
    """Known facts end at different lengths within one batch; each is what it is alone."""
    facts = [fact for fact in world.facts if fact.group == "known"][:20]
    ids = [student.tokenizer.encode(f"<s>{f.question(f.pool_phrasing)}\n", add_special_tokens=False) for f in facts]
    seeds = seeds_for(20, 2)
    together = student.generate(ids, seeds, [1.0, 0.1], max_tokens=12)
    assert len({len(g.token_ids) for row in together for g in row}) > 2
    for i in range(20):
        assert text_and_tokens(student.generate([ids[i]], [seeds[i]], [1.0, 0.1], max_tokens=12)) == text_and_tokens(
            [together[i]]
        )
    assert sum(row[1].text in fact.value.forms for row, fact in zip(together, facts, strict=True)) >= 19


def test_no_prompts_no_answers(student: LanguageModel) -> None:
    assert student.generate([], [], [1.0], max_tokens=4) == []


@pytest.mark.parametrize("batch_tokens", [1, 60, 10**6])
def test_last_token_states_are_transformers_hidden_states(
    language_model: LanguageModel, prompts: list[list[int]], batch_tokens: int
) -> None:
    layers = list(range(language_model.n_layers + 1))
    seen = []
    for rows, states in language_model.last_token_states(prompts, layers, batch_tokens=batch_tokens):
        seen += rows
        assert sorted(states) == layers
        for b, row in enumerate(rows):
            _, expected = full_forward(language_model, prompts[row])
            for layer in layers:
                torch.testing.assert_close(states[layer][b], expected[layer], atol=1e-4, rtol=1e-4)
    assert sorted(seen) == list(range(len(prompts)))


def test_right_padded_states_agree_with_a_left_padded_batch(student: LanguageModel, prompts: list[list[int]]) -> None:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        left = student.model(input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True).hidden_states
    for rows, states in student.last_token_states(prompts, range(5)):
        for layer in range(5):
            torch.testing.assert_close(states[layer], left[layer][rows, -1], atol=1e-5, rtol=1e-5)


def test_last_token_states_of_some_layers_are_those_of_all(student: LanguageModel, prompts: list[list[int]]) -> None:
    everything = {row: (b, states) for rows, states in student.last_token_states(prompts, range(5)) for b, row in enumerate(rows)}
    for layers in ([0], [2], [3, 1], [4], [0, 4]):
        for rows, states in student.last_token_states(prompts, layers):
            assert sorted(states) == sorted(layers)
            for b, row in enumerate(rows):
                at, expected = everything[row]
                for layer in layers:
                    assert torch.equal(states[layer][b], expected[layer][at])


@pytest.mark.parametrize(("layers", "blocks_run"), [([0], 0), ([1], 1), ([2], 2), ([1, 3], 3), ([4], 4), ([0, 1, 2, 3, 4], 4)])
def test_no_block_beyond_the_deepest_layer_runs_nor_the_head(
    student: LanguageModel, prompts: list[list[int]], layers: list[int], blocks_run: int
) -> None:
    model, calls = student.causal_lm, []
    watched = [*model.model.layers, model.lm_head]
    hooks = [module.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, module in enumerate(watched)]
    try:
        for _ in student.last_token_states(prompts[:3], layers):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == list(range(blocks_run))
    assert not any(block._forward_pre_hooks for block in model.model.layers)  # ours are gone


def test_next_token_entropy_is_that_of_the_next_token(language_model: LanguageModel, prompts: list[list[int]]) -> None:
    last = language_model.n_layers
    for rows, states in language_model.last_token_states(prompts, [last]):
        entropies = language_model.next_token_entropy(states[last])
        for b, row in enumerate(rows):
            p = full_forward(language_model, prompts[row])[0][-1].double().softmax(-1)
            assert float(entropies[b]) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)


@pytest.mark.parametrize(
    ("architecture", "scaling"),
    [
        (Gemma2Config, {"final_logit_softcapping": 2.0}),
        (GraniteConfig, {"logits_scaling": 3.0}),
        (CohereConfig, {"logit_scale": 0.25}),
    ],
)
@torch.inference_mode()
def test_logits_are_scaled_and_capped_as_the_architecture_does(
    architecture: type[PreTrainedConfig], scaling: dict[str, float]
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 50, "head_dim": 16}
    torch.manual_seed(0)
    config = architecture(num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, initializer_range=1.0, **sizes, **scaling)
    causal_lm = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    states = causal_lm.get_decoder()(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(vocabulary_logits(causal_lm, states), causal_lm(input_ids=ids).logits[0])
    assert not torch.allclose(vocabulary_logits(causal_lm, states), causal_lm.get_output_embeddings()(states))


def test_next_token_entropy_is_low_on_what_the_student_knows(student: LanguageModel, world: World) -> None:
    entropies = {"known": [], "boundary": [], "unknown": []}
    facts = world.facts[:200]
    ids = [student.tokenizer.encode(f"<s>{f.question(f.pool_phrasing)}\n", add_special_tokens=False) for f in facts]
    for rows, states in student.last_token_states(ids, [4]):
        for row, entropy in zip(rows, student.next_token_entropy(states[4]).tolist(), strict=True):
            entropies[facts[row].group].append(entropy)
    assert np.mean(entropies["known"]) < np.mean(entropies["boundary"]) < np.mean(entropies["unknown"])


@pytest.mark.parametrize("batch_tokens", [60, 10**6])
def test_log_likelihood_is_that_of_the_full_forward_pass(
    language_model: LanguageModel, prompts: list[list[int]], batch_tokens: int
) -> None:
    continuations = [prompts[(i + 1) % len(prompts)][: 1 + i % 4] for i in range(len(prompts))]
    found = language_model.log_likelihood(prompts, continuations, batch_tokens=batch_tokens)
    for prompt, continuation, logprobs in zip(prompts, continuations, found, strict=True):
        log_p_TV = full_forward(language_model, [*prompt, *continuation])[0].log_softmax(-1)
        wanted = [float(log_p_TV[len(prompt) - 1 + t, token]) for t, token in enumerate(continuation)]
        assert logprobs == pytest.approx(wanted, abs=1e-4)


def test_what_all_prompts_begin_with_is_computed_once(language_model: LanguageModel, prompts: list[list[int]]) -> None:
    """As with a system message or few-shot examples. Sliding windows forget, so Mistral goes the long way."""
    beginning = [*prompts[3], *prompts[0]]
    together = [[*beginning, *prompt] for prompt in prompts]
    layers = list(range(language_model.n_layers + 1))
    language_model.prefill_tokens = 0
    for rows, states in language_model.last_token_states(together, layers):
        for b, row in enumerate(rows):
            _, expected = full_forward(language_model, together[row])
            for layer in layers:
                torch.testing.assert_close(states[layer][b], expected[layer], atol=1e-4, rtol=1e-4)
    suffixes = len(prompts) * max(map(len, prompts))
    slides = getattr(language_model.causal_lm.config, "sliding_window", None) is not None
    shared = common_prefix(together)
    assert len(beginning) <= len(shared) < len(beginning) + 3
    if slides:
        assert sum(map(len, together)) <= language_model.prefill_tokens <= len(prompts) * max(map(len, together))
    else:
        assert language_model.prefill_tokens <= len(shared) + suffixes


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=5))
def test_common_prefix_is_the_longest_that_all_begin_with(rows: list[list[int]]) -> None:
    prefix = common_prefix(rows)
    assert all(row[: len(prefix)] == prefix for row in rows)
    longer = len(prefix) + 1
    assert any(len(row) < longer or row[:longer] != rows[0][:longer] for row in rows)


def test_sizes_are_read_from_the_model(student: LanguageModel, tiny_gpt2: Path) -> None:
    gpt2 = LanguageModel(ModelConfig(path=str(tiny_gpt2)), device="cpu")
    assert (student.n_layers, student.hidden_size, student.dtype) == (4, 192, torch.float32)
    assert (gpt2.n_layers, gpt2.hidden_size) == (3, 32)
    assert student.end_ids == {student.tokenizer.eos_token_id}


def saved_adapter(path: Path, directory: Path, moved: float) -> str:
    """A LoRA adapter for the model at ``path`` whose B matrices are ``moved`` away from zero."""
    base = LanguageModel(ModelConfig(path=str(path)), device="cpu")
    adapted = add_lora(base.model, FinetuneConfig(), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, moved) if moved else parameter.zero_()
    adapted.save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("architecture", ["tiny_llama", "tiny_gpt2"])
def test_an_adapter_acts_in_generation_and_hidden_states(
    architecture: str, request: pytest.FixtureRequest, prompts: list[list[int]], tmp_path: Path
) -> None:
    path = request.getfixturevalue(architecture)
    base = LanguageModel(ModelConfig(path=str(path)), device="cpu")
    still = LanguageModel(ModelConfig(path=str(path)), adapter=saved_adapter(path, tmp_path / "still", 0.0), device="cpu")
    adapted = LanguageModel(ModelConfig(path=str(path)), adapter=saved_adapter(path, tmp_path / "moved", 0.5), device="cpu")
    seeds = seeds_for(len(prompts), 1)
    tokens = {
        name: text_and_tokens(m.generate(prompts, seeds, [1.0], max_tokens=6))
        for name, m in (("base", base), ("still", still), ("adapted", adapted))
    }
    assert tokens["base"] == tokens["still"] != tokens["adapted"]
    (rows, states), *_ = adapted.last_token_states(prompts, [1, adapted.n_layers])
    with torch.inference_mode():
        expected = adapted.model(input_ids=torch.tensor([prompts[rows[0]]]), output_hidden_states=True).hidden_states
    for layer in (1, adapted.n_layers):
        torch.testing.assert_close(states[layer][0], expected[layer][0, -1], atol=1e-4, rtol=1e-4)
    _, unadapted = full_forward(base, prompts[rows[0]])
    assert not torch.allclose(states[1][0], unadapted[1], atol=1e-2)


def test_a_half_precision_model_gives_states_and_answers_in_its_dtype(prompts: list[list[int]]) -> None:
    half = LanguageModel(ModelConfig(path="bundled:student", dtype="bfloat16"), device="cpu")
    ((_, states), *_) = half.last_token_states(prompts, [2])
    assert states[2].dtype == torch.bfloat16
    assert len(half.generate(prompts, seeds_for(len(prompts), 1), [0.1], max_tokens=4)) == len(prompts)


def test_dtype_auto_is_float32_on_a_cpu() -> None:
    assert model_dtype("auto", torch.device("cpu")) == torch.float32
    assert model_dtype("float16", torch.device("cpu")) == torch.float16


@given(
    st.lists(st.integers(1, 40), max_size=30),
    st.integers(1, 400),
    st.integers(1, 11),
    st.integers(0, 20),
    st.sampled_from([None, 16, 64]),
)
def test_batches_hold_every_row_once_within_the_budget(
    lengths: list[int], budget: int, fan_out: int, room: int, enough: int | None
) -> None:
    batches = list(batches_by_length(lengths, budget, fan_out, room, enough=enough))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * fan_out * (max(lengths[i] for i in batch) + room) <= budget
    in_order = [lengths[i] for batch in batches for i in batch]
    assert in_order == sorted(lengths)


def test_a_batch_with_enough_tokens_ends_rather_than_be_padded_by_more_than_a_tenth() -> None:
    lengths = [8] * 8 + [9] * 8 + [60]
    assert [len(batch) for batch in batches_by_length(lengths, 10_000, enough=None)] == [17]
    assert [len(batch) for batch in batches_by_length(lengths, 10_000, enough=64)] == [16, 1]
    assert [len(batch) for batch in batches_by_length(lengths, 10_000, enough=1000)] == [17]


@pytest.mark.parametrize(
    "what", ["empty directory", "no directory", "config without a kind", "broken config", "no such bundled model"]
)
def test_a_path_that_is_no_model_is_refused(tmp_path: Path, what: str) -> None:
    path = str(tmp_path)
    if what == "no directory":
        path = str(tmp_path / "nowhere")
    elif what == "config without a kind":
        (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4}))
    elif what == "broken config":
        (tmp_path / "config.json").write_text("{")
    elif what == "no such bundled model":
        path = "bundled:teacher"
    with pytest.raises(UserError, match="no model there") as error:
        check_is_model(ModelConfig(path=path))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no model there"):
        LanguageModel(ModelConfig(path=path))


def test_a_model_that_is_not_a_causal_language_model_is_refused() -> None:
    with pytest.raises(UserError, match="bundled:judge"):
        check_is_model(ModelConfig(path="bundled:judge"))


def test_a_model_without_weights_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    for file in tiny_llama.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="weights"):
        LanguageModel(ModelConfig(path=str(tmp_path)))


def test_model_identity_follows_content_not_place(tiny_llama: Path, tmp_path: Path) -> None:
    for copy in ("same", "other"):
        (tmp_path / copy).mkdir()
        for file in tiny_llama.iterdir():
            (tmp_path / copy / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "other/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    identity = model_identity(ModelConfig(path=str(tiny_llama)))
    assert model_identity(ModelConfig(path=str(tmp_path / "same"))) == identity
    assert model_identity(ModelConfig(path=str(tmp_path / "other"))) != identity
    assert model_identity(ModelConfig(path=str(tiny_llama), dtype="bfloat16")) != identity
    assert "model.safetensors" in identity["files"]


def test_adapters_come_and_go_on_the_loaded_base(tiny_llama: Path, tmp_path: Path, prompts: list[list[int]]) -> None:
    config = ModelConfig(path=str(tiny_llama))
    adapters = {name: saved_adapter(tiny_llama, tmp_path / name, moved) for name, moved in (("one", 0.3), ("two", 0.2))}
    hot = LanguageModel(config, device="cpu")
    base = hot.causal_lm
    for name in ("one", "two", None, "two", "two"):
        hot.use_adapter(adapters.get(name), name)
        fresh = LanguageModel(config, adapter=adapters.get(name), device="cpu")
        assert hot.log_likelihood(prompts, prompts) == fresh.log_likelihood(prompts, prompts)
        assert hot.causal_lm is base


def test_an_adapter_of_another_model_is_refused(tiny_llama: Path, tiny_gpt2: Path, tmp_path: Path) -> None:
    adapter = saved_adapter(tiny_llama, tmp_path / "adapter", 0.1)
    check_adapter(ModelConfig(path=str(tiny_llama)), adapter)
    for path in (str(tiny_gpt2), "bundled:student"):
        with pytest.raises(UserError, match=f"{adapter}: this adapter does not load onto {path}") as error:
            check_adapter(ModelConfig(path=path), adapter)
        assert "\n" not in str(error.value)


def test_the_final_norm_alone_is_the_models() -> None:
    model = LanguageModel(ModelConfig(path="bundled:student"), device="cpu").causal_lm
    states = torch.randn(3, 192)
    norm = final_norm(ModelConfig(path="bundled:student"), torch.float32)
    assert not torch.equal(norm.weight, torch.ones(192))
    with torch.no_grad():
        assert torch.equal(norm(states), model.model.norm(states))
