"""Small models of transformers' architectures with random weights, and each of them held against the plain forward pass.

``python -m tests.unit.models.architecture_table`` writes the table of docs/models.md.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig

from ka2l_ray.config import FinetuneConfig, ModelConfig
from ka2l_ray.errors import UserError
from ka2l_ray.finetuning.lora import add_lora, trainable
from ka2l_ray.finetuning.loss import AnswerLoss
from ka2l_ray.finetuning.rows import TrainingRow
from ka2l_ray.models.architecture import auto_class, decoder_blocks
from ka2l_ray.models.language_model import LanguageModel
from ka2l_ray.models.self_check import Ways
from ka2l_ray.world import bundled_path

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
TOLERANCE = 1e-5
LAYERS = 4
SIZES: dict[str, Any] = {  # of whatever an architecture has under these names
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.3, "init_std": 0.3, "sliding_window": 8,
    "rotary_dim": 4,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "shared_expert_intermediate_size": 16, "first_k_dense_replace": 1,
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_mamba_heads": 2,
    "mamba_chunk_size": 8, "chunk_size": 8, "ssm_state_size": 8, "state_size": 8,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "hidden_size_per_layer_input": 8,
}  # fmt: skip
LATENT = {"head_dim": None, "num_key_value_heads": 4}  # multi-head latent attention has its own widths
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "image_size": 28}
CONV = {"layer_types": ["conv", "full_attention"] * 2}
OWN: dict[str, dict[str, Any]] = {  # None: the architecture's own value
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere": {"logit_scale": 2.0},
    "cohere2": {"logit_scale": 2.0},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": {**LATENT, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8},
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_groups": 2, "lm_head_multiplier": 0.5, "embedding_multiplier": 2.0},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2, "laurel_rank": 8,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0], "intermediate_size": [48] * LAYERS,
    },
    "gemma4_text": {"global_head_dim": 16, "num_kv_shared_layers": 0},
    "glm4_moe_lite": LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_layers": LAYERS, "window_size": 8},
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.7, "embedding_multiplier": 2.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "mamba_n_groups": 1, "shared_intermediate_size": 16},
    "hrm_text": {"initializer_range": 0.05},  # its blocks run many times: larger weights make rounding grow
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2": CONV,
    "lfm2_moe": {**CONV, "num_dense_layers": 1},
    "llama4_text": {"attention_chunk_size": 8, "intermediate_size_mlp": 48, "no_rope_layers": [1, 1, 1, 0]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2},
    "minicpm3": LATENT,
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe", "mamba"], "num_hidden_layers": None, "n_groups": 2,
        "moe_shared_expert_intermediate_size": 16,
    },
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen3_5_moe_text": {"initializer_range": 0.1},  # larger: rounding chooses experts
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8},
    "rwkv": {"attention_hidden_size": 32},
    "xlstm": {"num_blocks": LAYERS},
    "zamba": {"layers_block_type": ["mamba", "hybrid"] * 2, "attention_head_dim": 16},
    "zamba2": {
        "layer_types": ["mamba", "hybrid"] * 2, "layers_block_type": ["mamba", "hybrid"] * 2, "hybrid_layer_ids": [1, 3],
        "mamba_ngroups": 2, "num_mem_blocks": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
COMPOSITE: dict[str, tuple[str, dict[str, Any]]] = {  # the language model inside, and what lies beside it
    "gemma3": ("gemma3_text", {"vision_config": {**VISION, "patch_size": 14}, "mm_tokens_per_image": 1}),
    "llava": ("llama", {"vision_config": {"model_type": "clip_vision_model", **VISION, "patch_size": 14}}),
    "mistral3": ("mistral", {"vision_config": {"model_type": "pixtral", **VISION, "patch_size": 14, "head_dim": 8}}),
    "qwen2_5_vl": ("qwen2_5_vl_text", {"vision_config": {"depth": LAYERS, "hidden_size": 16, "intermediate_size": 24,
                   "num_heads": 2, "out_hidden_size": 32}}),
    "qwen3_vl": ("qwen3_vl_text", {"vision_config": {"depth": LAYERS, "hidden_size": 16, "intermediate_size": 24,
                 "num_heads": 2, "out_hidden_size": 32, "deepstack_visual_indexes": [1]}}),
    "llama4": ("llama4_text", {}),
    "qwen3_5": ("qwen3_5_text", {}),
}  # fmt: skip
FOUND_RIGHT = [
    "llama", "qwen2", "qwen3", "mistral", "olmo2", "olmo3", "phi", "phi3", "glm", "glm4", "gemma", "gemma2",
    "gemma3_text", "gemma3n_text", "gemma4_text", "granite", "cohere", "cohere2", "smollm3", "stablelm", "starcoder2",
    "exaone4", "ernie4_5", "apertus", "nemotron", "qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "falcon", "bloom",
    "mpt", "gpt_neox",
]  # fmt: skip
MORE = [
    "olmo", "opt", "gpt2", "gptj", "gpt_neo", "gpt_bigcode", "codegen", "biogpt", "xglm", "persimmon", "helium",
    "arcee", "seed_oss", "nanochat", "bitnet", "minicpm3", "modernbert-decoder", "diffllama", "doge", "vaultgemma",
    "hunyuan_v1_dense", "hrm_text", "qwen2_moe", "olmoe", "deepseek_v2", "deepseek_v32", "deepseek_v4", "glm4_moe",
    "glm4_moe_lite", "granitemoe", "phimoe", "ernie4_5_moe", "dots1", "flex_olmo", "jetmoe", "minimax_m2",
    "mimo_v2_flash", "exaone_moe", "cohere2_moe", "hunyuan_v1_moe", "llama4_text", "zaya", "qwen3_next", "qwen3_5_text",
    "qwen3_5_moe_text", "lfm2", "lfm2_moe", "jamba", "mamba", "mamba2", "falcon_mamba", "falcon_h1", "bamba",
    "recurrent_gemma", "granitemoehybrid", "nemotron_h", "zamba", "zamba2", "minimax", "olmo_hybrid", "rwkv", "xlstm",
]  # fmt: skip
ARCHITECTURES = [*FOUND_RIGHT, *MORE, *COMPOSITE]
ONE_A_MECHANISM = ["gemma3", "llama4_text", "qwen3_next", "mamba", "minimax", "recurrent_gemma", "gemma3n_text"]
"""Composite; missed by ``get_decoder``; fan-out of a hybrid cache; equal lengths; repeated rows; no cache; streams."""


@dataclass(frozen=True)
class Found:
    """An architecture in the table: how the engine runs it and how far each operation is off, or why it is refused."""

    name: str
    kind: str
    ways: Ways | None
    off: dict[str, float]
    refusal: str = ""

    def row(self) -> str:
        if self.ways is None:
            return f"| `{self.name}` | {self.kind} | refused: {self.refusal} | |"
        states = "block by block" if self.ways.early_exit else "whole passes"
        if self.ways.stream_axis is not None:
            states += ", mean of the streams"
        return f"| `{self.name}` | {self.kind} | {DECODING[self.ways.decoding]} | {states} |"


DECODING = {
    "padded": "fanned out",
    "equal lengths": "fanned out, prompts of one length",
    "repeated rows": "rows repeated, prompts of one length",
    "recomputed": "recomputed, no cache",
}


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(bundled_path("bundled:student"))


def tiny_config(name: str) -> PreTrainedConfig:
    """Of an architecture, small, with weights large enough for errors to be seen."""
    if name in COMPOSITE:
        inside, beside = COMPOSITE[name]
        text = tiny_config(inside).to_dict()
        return CONFIG_MAPPING[name](text_config=text, **beside)
    ids = {"pad_token_id": 0, "bos_token_id": tokenizer().bos_token_id, "eos_token_id": tokenizer().eos_token_id}
    vocabulary = {"vocab_size": len(tokenizer()) + 8, "vocab_size_per_layer_input": len(tokenizer()) + 8}
    kind = CONFIG_MAPPING[name]
    known = {*kind().to_dict(), *kind.attribute_map}
    sizes = {key: value for key, value in {**SIZES, **vocabulary, **ids}.items() if key in known}
    if name in ("qwen2_5_vl_text", "qwen3_vl_text"):
        sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    sizes |= OWN.get(name, {})
    return kind(**{key: value for key, value in sizes.items() if value is not None or key not in OWN.get(name, {})})


def save_tiny(name: str, directory: Path | str) -> None:
    """A model directory."""
    torch.manual_seed(0)
    config = tiny_config(name)
    model = auto_class(config).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # so that every architecture has weights that matter, biases and norms too
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)


@cache
def hold(name: str) -> Found:
    """The architecture against its plain forward pass."""
    with tempfile.TemporaryDirectory() as directory:
        save_tiny(name, directory)
        config = ModelConfig(path=directory)
        try:
            model = LanguageModel(config, device="cpu")
        except UserError as error:
            _, kind, reason = str(error).removesuffix("; use engine.name=vllm").split(": ", 2)
            return Found(name, kind, None, {}, reason.partition(" is not what")[0])
        off = {
            "sampling": sampling(model),
            "states": states(model),
            "log-likelihood": log_likelihood(model),
            "score": early_exit(model),
        }
        off["LoRA step"], off["adapter"] = lora(model, config, f"{directory}/adapter")
        return Found(name, type(model.causal_lm).__name__, model.ways, off)


def prompts() -> list[list[int]]:
    """Five of several lengths; two are equally long, and four begin alike."""
    ids = tokenizer().encode("Where was Fra born? Question: in which year did the first railway between two towns open, and who")
    return [ids[:30], ids[:22], [*ids[:20], *ids[:2]], ids[:21], ids[5:9]]


@torch.inference_mode()
def plain(model: LanguageModel, ids: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits (T, V) and the last token's state of each layer, by transformers' own forward pass over one text."""
    out = model.causal_lm(input_ids=torch.tensor([list(ids)]), use_cache=False, output_hidden_states=True)
    hidden = list(out.hidden_states)
    blocks = decoder_blocks(model.causal_lm)
    if type(model.causal_lm).__name__ in ("MambaForCausalLM", "Mamba2ForCausalLM", "FalconMambaForCausalLM", "RwkvForCausalLM"):
        # Their record begins with the first block's output, and has the last one's before and after the norm.
        seen: list[Tensor] = []
        hook = blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model.causal_lm(input_ids=torch.tensor([list(ids)]), use_cache=False)
        hook.remove()
        hidden = [seen[0], *hidden[: len(blocks) - 1], hidden[-1]]
    if hidden[0].dim() == 4:  # streams, before the rows or after the tokens; joined at the end
        axis = model.ways.stream_axis
        last: list[Tensor] = []
        hook = model.causal_lm.base_model.register_forward_hook(lambda *args: last.append(args[-1].last_hidden_state))
        model.causal_lm(input_ids=torch.tensor([list(ids)]), use_cache=False)
        hook.remove()
        hidden = [*(h.mean(axis) for h in hidden[:-1]), last[0]]
    return out.logits[0], [h[0, -1] for h in hidden]


def off_by(found: Any, wanted: Any) -> float:
    found, wanted = torch.as_tensor(found), torch.as_tensor(wanted)
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1))


def sampling(model: LanguageModel) -> float:
    """Greedy-like tokens are a plain loop's; log-probabilities of three samples a prompt are the plain forward pass's."""
    for ids, (answer,) in zip(prompts(), model.generate(prompts(), 0, [1e-6], max_tokens=4), strict=True):
        whole = list(ids)
        for token in answer.token_ids:
            assert int(plain(model, whole)[0][-1].argmax()) == token
            whole.append(token)
    worst = 0.0
    answers = model.generate(prompts(), 1, [1.0, 0.7, 1.5], max_tokens=5)
    assert len({tuple(a.token_ids) for row in answers for a in row}) > len(answers)
    for ids, row in zip(prompts(), answers, strict=True):
        for answer in row:
            log_p_TV = plain(model, [*ids, *answer.token_ids])[0][len(ids) - 1 : -1].log_softmax(-1)
            wanted = log_p_TV.gather(1, torch.tensor(answer.token_ids)[:, None]).squeeze(1)
            worst = max(worst, off_by(answer.token_logprobs, wanted))
    return worst


def states(model: LanguageModel) -> float:
    layers = range(model.n_layers + 1)
    worst = 0.0
    seen = []
    for given in (prompts(), prompts()[:4]):  # the four share a beginning
        for rows, found in model.last_token_states(given, layers):
            for b, row in enumerate(rows):
                wanted = plain(model, given[row])[1]
                worst = max(worst, *(off_by(found[layer][b], wanted[layer]) for layer in layers))
                seen.append(row)
    assert len(seen) == 9
    return worst


def early_exit(model: LanguageModel) -> float:
    """The state of a middle layer, as the score stage reads it; no later block runs."""
    middle = model.n_layers // 2
    blocks = decoder_blocks(model.causal_lm) if model.ways.early_exit else []
    ran: list[int] = []
    hooks = [block.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, block in enumerate(blocks)]
    found = {row: state for rows, s in model.last_token_states(prompts(), [middle]) for row, state in zip(rows, s[middle])}
    for hook in hooks:
        hook.remove()
    assert max(ran, default=-1) < middle
    return max(off_by(found[row], plain(model, ids)[1][middle]) for row, ids in enumerate(prompts()))


def log_likelihood(model: LanguageModel) -> float:
    answers = [ids[:4] for ids in reversed(prompts())]
    worst = 0.0
    for ids, answer, found in zip(prompts(), answers, model.log_likelihood(prompts(), answers), strict=True):
        log_p_TV = plain(model, [*ids, *answer])[0][len(ids) - 1 : -1].log_softmax(-1)
        worst = max(worst, off_by(found, log_p_TV.gather(1, torch.tensor(answer)[:, None]).squeeze(1)))
    return worst


def lora(model: LanguageModel, config: ModelConfig, directory: str) -> tuple[float, float]:
    """(gradient of a LoRA step, logits with the adapter loaded again): how far each is off."""
    adapted = add_lora(LanguageModel(config, device="cpu").model, FinetuneConfig(lora_rank=2, lora_dropout=0.0), seed=0)
    torch.manual_seed(1)
    for name, parameter in trainable(adapted).items():
        if "lora_B" in name:
            nn.init.normal_(parameter, 0, 0.1)
    rows = [TrainingRow(ids, len(ids) - 3) for ids in prompts()[:2]]
    loss = AnswerLoss(adapted)
    gradients = []
    for total in (loss(*loss.collate(rows, 0)), sum(_plain_loss(adapted, row) for row in rows)):
        adapted.zero_grad()
        total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in trainable(adapted).values() if p.grad is not None]))
    step = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    adapted.save_pretrained(directory)
    adapted.eval()
    before = model.log_likelihood([prompts()[0]], [[5, 6]])
    model.use_adapter(directory, "adapter")
    reloaded = model.causal_lm(input_ids=torch.tensor(prompts()[:1]), use_cache=False).logits
    trained = adapted(input_ids=torch.tensor(prompts()[:1]), use_cache=False).logits
    ours = log_likelihood(model)
    model.use_adapter(None, None)
    assert model.log_likelihood([prompts()[0]], [[5, 6]]) == before
    assert not torch.allclose(plain(model, prompts()[0])[0], trained[0], atol=1e-2), "the adapter does nothing"
    return step, max(ours, off_by(reloaded, trained))


def _plain_loss(adapted: Any, row: TrainingRow) -> Tensor:
    """Of one row, without padding."""
    ids = torch.tensor([row.token_ids])
    logits_TV = adapted(input_ids=ids, use_cache=False).logits[0, row.prompt_length - 1 : -1]
    return nn.functional.cross_entropy(logits_TV, ids[0, row.prompt_length :], reduction="sum")


def page() -> str:
    """docs/models.md."""
    found = [hold(name) for name in ARCHITECTURES]
    agreeing = [f for f in found if f.ways is not None]
    introduction = PAGE_HEAD.format(n=len(found), agreeing=len(agreeing), refused=len(found) - len(agreeing))
    return "\n".join([introduction, *(f.row() for f in found), ""])


PAGE_HEAD = """# Models

Which architectures of transformers the engine runs, and how. `python -m tests.unit.models.architecture_table` writes this page
from a test: of {n} architectures, small and with random weights, {agreeing} agree with the plain forward pass (no padding, no
cache, one text at a time) to 1e-5 in sampling, in the state of every layer, in log-likelihood, in scoring with early exit, in the
gradient of a LoRA step and with an adapter loaded again. Refused: {refused}.

The same is looked at, on a few tokens, whenever a model is loaded (`ka2l_ray/models/self_check.py`), so an architecture that is
not listed is found right, run in a simpler way, or refused by one line before anything is paid for. The ways, fastest first:

* *fanned out*: prompts are prefilled once, padded on the left, and their cache is copied to all their samples;
* *prompts of one length*: the same without padding, for models that padding on the left would change;
* *rows repeated*: a prompt is prefilled once for each sample, in a cache of the model's own making;
* *recomputed*: no cache; each step runs all tokens again. Right, and slow: prefer `engine.name=vllm` for long answers.

States are read as they enter a block, so that the forward pass ends at the deepest layer asked for; or in *whole passes*, from
transformers' record. Where blocks hand on several streams (Gemma 3n, hyper-connections), the state is their mean. A composite
model (text and vision) is run as its language model, and LoRA goes into that model's blocks only.

| `model_type` | class | samples | states |
|---|---|---|---|"""


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    PAGE.write_text(page())
