"""The configuration of a run: one YAML, validated; unknown keys fail with the nearest valid one named.

Imports neither torch nor ray, so that ``--help`` and wrong configurations are answered at once. Defaults are the KA2L paper's.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ka2l_ray.errors import UserError

BUNDLED_STUDENT = "bundled:student"
BUNDLED_JUDGE = "bundled:judge"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    path: str
    """Directory or hub name of a causal language model; ``bundled:student`` is the small one that ships with ka2l_ray."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights in memory. ``auto``: float32 on a CPU, bfloat16 on a GPU that has it."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave off unless you have read it."""


class PromptConfig(Section):
    instruction: str = "Answer the question as briefly as you can."
    """Said before the question (a system message where the model has a chat template); may be empty."""
    examples: list[tuple[str, str]] = []
    """Few-shot (question, answer) pairs."""
    chat_template: Literal["auto", "never"] = "auto"
    """``auto``: the tokenizer's own template where it has one; ``never``: plain ``Question: ... Answer:`` text."""


class PoolConfig(Section):
    questions: str
    """File of unlabelled questions (.jsonl or .parquet): id, question and, where known, answers."""
    test: str | None = None
    """File of held-out questions with answers; none of them may stand in the pool."""
    probing_size: int = Field(1000, ge=2)
    """Questions a round that are sampled to fit the probe (at most the unlabelled pool)."""


class SamplingConfig(Section):
    k: int = Field(10, ge=2)
    """Answers a question. Two at least: entropy needs something to compare."""
    temperature: float = Field(1.0, gt=0)
    """Of the k answers."""
    greedy_temperature: float = Field(0.1, gt=0)
    """Of the one greedy-like answer, and of evaluation."""
    max_tokens: int = Field(64, ge=1)
    """Longest answer, tokens."""
    stop: list[str] = ["\n"]
    """An answer ends before any of these texts."""
    stop_when_decided: bool = False
    """Draw the k answers in waves, and no more where the label can no longer change: the label is exact, the semantic entropy a
    bound. Needs ``entropy.rule`` ka2l or fixed, whose threshold is known beforehand."""
    memo: str | None = None
    """Directory of answers to keep and to take up again: the same question, model, seed and settings are not sampled twice."""


class EngineConfig(Section):
    name: Literal["transformers", "vllm"] = "transformers"
    """Backend that generates. ``transformers``: the reference, and for CPUs; ``vllm``: for GPUs (extra ``vllm``)."""
    hidden_states: Literal["transformers", "vllm"] = "transformers"
    """Backend that reads hidden states; scoring the pool is always transformers', which stops at the probe's layer."""
    replicas: int = Field(1, ge=1)
    """Copies of the model, each in a placement group of its own."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs over which each layer of a copy is split (vLLM); transformers spreads its blocks over as many."""
    pipeline_parallel: int = Field(1, ge=1)
    """Groups of GPUs over which the layers of a copy are shared out."""
    cpus: float = Field(1, gt=0)
    """CPUs of one copy; also its threads."""
    gpus: float = Field(0, ge=0)
    """GPUs of one copy over tensor_parallel x pipeline_parallel: 0 on CPUs, 1 on GPUs, a part where small copies share one."""
    max_model_len: int | None = Field(None, ge=8)
    """Tokens of prompt and answer at most; the model's own limit when left out."""
    batch_tokens: int = Field(8192, ge=1)
    """Cache entries of one forward pass, padding included (transformers)."""
    shard_size: int = Field(256, ge=1)
    """Questions of one shard: the unit of retry and of resume."""
    max_attempts: int = Field(3, ge=1)
    """Attempts at a single question before it is written with its error."""
    max_error_rate: float = Field(0.01, ge=0, le=1)
    """Share of a stage's questions that may fail; beyond it the run stops."""
    max_restarts: int = Field(32, ge=0)
    """Engines that may die in one stage before it stops. To single out a question that kills takes about 11."""
    placement_timeout: float = Field(600, gt=0)
    """Seconds to wait for a place while other work holds the cluster."""
    vllm: dict[str, Any] = {}
    """Further arguments of ``vllm.LLM``, such as gpu_memory_utilization, by their own names."""

    @model_validator(mode="after")
    def _whole_gpus_where_sharded(self) -> Self:
        if self.gpus and self.gpus != 1 and self.tensor_parallel * self.pipeline_parallel > 1:
            raise ValueError(f"gpus is {self.gpus:g}; a copy that is split over GPUs takes whole ones: set gpus 1")
        return self


class EntropyConfig(Section):
    judge: Literal["nli", "exact"] = "nli"
    """Who says that two answers mean the same: an NLI model, or normalised string match."""
    nli_model: str = "microsoft/deberta-large-mnli"
    """Sequence-classification NLI model; ``bundled:judge`` is the small one that ships with ka2l_ray."""
    equivalence: Literal["strict", "lenient"] = "strict"
    """``strict``: entailment both ways; ``lenient``: no contradiction and not both neutral."""
    policy: Literal["founder_last", "founder_first"] = "founder_last"
    """How clusters form where verdicts are not transitive."""
    rule: Literal["ka2l", "two_means", "quantile", "fixed"] = "ka2l"
    """Threshold between known and unknown. ``ka2l`` is Eq. 3-4, whose optimum is 0.5 nats."""
    quantile: float = Field(0.5, gt=0, lt=1)
    """For ``quantile``: share of questions below the threshold."""
    threshold: float = Field(0.5, ge=0)
    """For ``fixed``: nats."""
    audit: float = Field(0.02, ge=0, le=1)
    """Share of questions of which every pair of answers is judged, to count non-transitive triples."""
    replicas: int = Field(1, ge=1)
    """Judge actors."""
    batch_size: int = Field(64, ge=1)
    """Sentence pairs of one forward pass."""


class ProbeConfig(Section):
    kind: Literal["mlp", "linear"] = "mlp"
    """``mlp`` is KA2L's (4 linear layers, 1 SiLU); ``linear`` is logistic regression."""
    hidden_width: int = Field(14336, ge=1)
    """Inner width of ``mlp``."""
    learning_rate: float = Field(1e-5, gt=0)
    """Adam."""
    epochs: int = Field(20, ge=1)
    """Passes over the probing set's training part."""
    batch_size: int = Field(32, ge=1)
    """Questions of one step."""
    layers: Literal["all"] | list[int] = "all"
    """Layers to fit one probe each; 0 is the embeddings."""
    workers: int = Field(1, ge=1)
    """Ray Train workers; the layers are shared out among them."""

    @field_validator("layers")
    @classmethod
    def _layers_differ(cls, layers: Literal["all"] | list[int]) -> Literal["all"] | list[int]:
        if layers != "all" and (not layers or len(set(layers)) < len(layers) or min(layers) < 0):
            raise ValueError("give 'all', or different layer numbers from 0 (the embeddings) on")
        return layers


class SelectionConfig(Section):
    strategy: str = "ka2l"
    """Name of a query strategy (``ka2l select --help`` lists them)."""
    budget: int = Field(1000, ge=1)
    """Labels a round."""


class AnnotationConfig(Section):
    source: Literal["column"] = "column"
    """Where labels come from: the ``answers`` column of the pool, or of ``answers``."""
    answers: str | None = None
    """File with id and answers; the pool itself when left out."""


class FinetuneConfig(Section):
    start: Literal["base", "last_adapter"] = "base"
    """Each round trains from the base model on all labels so far, or goes on from the last adapter on the new ones."""
    lora_rank: int = Field(8, ge=1)
    """Rank of the LoRA matrices, on all linear layers."""
    lora_alpha: float = Field(16, gt=0)
    """LoRA scale is alpha / rank."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """On the input of the A matrices."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW, linear warm-up then cosine."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    epochs: int = Field(3, ge=1)
    """Passes over the training rows."""
    batch_size: int = Field(16, ge=1)
    """Rows of one optimiser step, over all workers."""
    micro_batch_size: int = Field(4, ge=1)
    """Rows of one forward pass of one worker."""
    max_length: int = Field(1024, ge=8)
    """Tokens of prompt and answer; longer rows are refused."""
    gradient_checkpointing: bool = False
    """Trade compute for memory."""
    workers: int = Field(1, ge=1)
    """Ray Train workers, one GPU each where there are GPUs."""
    replay_known: float = Field(1.0, ge=0)
    """Predicted-known, unlabelled questions with the model's own majority answer, per labelled question. Costs no label."""
    checkpoint_every: int = Field(200, ge=1)
    """Optimiser steps between checkpoints inside the stage."""

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> Self:
        share = self.batch_size / self.workers
        if share != int(share) or (share > self.micro_batch_size and share % self.micro_batch_size):
            raise ValueError(
                f"batch_size {self.batch_size} must be workers {self.workers} x micro_batch_size {self.micro_batch_size} "
                "x a whole number"
            )
        return self


class EvaluationConfig(Section):
    bootstrap: int = Field(1000, ge=1)
    """Resamples behind each interval."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Coverage of each interval."""


class StoppingConfig(Section):
    max_rounds: int = Field(1, ge=1)
    """Rounds at most."""
    max_labels: int | None = Field(None, ge=1)
    """Labels at most, over all rounds."""
    min_unknown_share: float = Field(0.0, ge=0, le=1)
    """Stop when the share of the pool that is predicted unknown falls below this."""
    plateau_rounds: int | None = Field(None, ge=1)
    """Stop when exact match on the test set has not risen by ``plateau_gain`` for this many rounds."""
    plateau_gain: float = Field(0.005, ge=0)
    """Least rise that counts, in exact match."""


class RunConfig(Section):
    """A whole run."""

    output: str = "runs/ka2l"
    """The run directory; on a cluster a path that all nodes share."""
    seed: int = 0
    """All randomness derives from it."""
    ray_address: str | None = None
    """Cluster to join; left out: the one in RAY_ADDRESS, else a local one for this run."""
    reuse: list[str] = []
    """Other run directories whose artefacts are taken over where the content key is equal."""
    model: ModelConfig
    """The language model that learns."""
    prompt: PromptConfig = PromptConfig()
    """How a question is put to it."""
    pool: PoolConfig
    """The questions."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are drawn."""
    engine: EngineConfig = EngineConfig()
    """What the language model runs on."""
    entropy: EntropyConfig = EntropyConfig()
    """Meaning, semantic entropy, known and unknown."""
    probe: ProbeConfig = ProbeConfig()
    """The classifier of known and unknown on hidden states."""
    selection: SelectionConfig = SelectionConfig()
    """Which questions are labelled."""
    annotation: AnnotationConfig = AnnotationConfig()
    """Where labels come from."""
    finetune: FinetuneConfig = FinetuneConfig()
    """LoRA fine-tuning."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Figures on the test set."""
    stopping: StoppingConfig = StoppingConfig()
    """When the run ends."""

    @model_validator(mode="after")
    def _threshold_known_before_sampling(self) -> Self:
        if self.sampling.stop_when_decided and self.entropy.rule not in ("ka2l", "fixed"):
            raise ValueError(
                f"sampling.stop_when_decided needs a threshold that is known beforehand, entropy.rule is {self.entropy.rule}; "
                "set it to ka2l or fixed, or leave stop_when_decided out"
            )
        if self.sampling.stop_when_decided and self.selection.strategy == "semantic_entropy":
            raise ValueError(
                "selection.strategy semantic_entropy ranks by what sampling.stop_when_decided only bounds; leave it out"
            )
        return self


# Sections and keys that say where and how long a run goes, not what it computes: they may differ when a run goes on.
NOT_CONTENT = (
    "output",
    "ray_address",
    "reuse",
    "stopping",
    "engine.replicas",
    "engine.cpus",
    "engine.max_attempts",
    "engine.max_error_rate",
    "engine.max_restarts",
    "engine.placement_timeout",
    "sampling.memo",
    "entropy.replicas",
    "entropy.batch_size",
    "probe.workers",
    "finetune.checkpoint_every",
)


def preset_names() -> list[str]:
    return sorted(
        p.name.removesuffix(".yaml") for p in (resources.files("ka2l_ray") / "presets").iterdir() if p.name.endswith(".yaml")
    )


def load_preset(name: str) -> dict[str, Any]:
    if name not in preset_names():
        raise UserError(f"no preset '{name}'{_nearest(name, preset_names())}; there are: {', '.join(preset_names())}")
    text = (resources.files("ka2l_ray") / "presets" / f"{name}.yaml").read_text()
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def load_config(path: str | Path | None, overrides: list[str] | None = None, values: dict[str, Any] | None = None) -> RunConfig:
    """The validated configuration: preset, then file, then ``values`` by dotted key, then ``KEY=VALUE`` overrides.

    Raises:
        UserError: no such file, not YAML, an unknown key, or a value out of range; one line each.
    """
    document: dict[str, Any] = {}
    where = "configuration"
    if path is not None:
        where = f"{path} and -o" if overrides else str(path)
        document = _read_yaml(Path(path))
    for key, value in (values or {}).items():
        _put(document, key, value, key)
    for override in overrides or []:
        _apply(document, override)
    preset = document.pop("preset", None)
    if preset is not None:
        document = _merge(load_preset(str(preset)), document)
    return validate(document, where)


def validate(document: dict[str, Any], where: str = "configuration") -> RunConfig:
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from None


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def valid_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += valid_keys(kind, f"{prefix}{name}.")
    return keys


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: {'a directory' if path.is_dir() else 'no such file'}; give a YAML configuration")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{place}: not YAML ({getattr(error, 'problem', 'cannot be read')})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); give a YAML configuration") from None
    if document is None:
        raise UserError(f"{path}: the file is empty; give a YAML configuration")
    if not isinstance(document, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys, this is a {type(document).__name__}")
    return document


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"-o {override}: an override is KEY=VALUE, such as probe.epochs=5")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"-o {override}: the value is not YAML") from None
    _put(document, key.strip(), parsed, f"-o {override}")


def _put(document: dict[str, Any], key: str, value: Any, shown: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise UserError(f"{shown}: '{section}' is a value, not a section")
    document[last] = value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        inner = merged.get(name)
        merged[name] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _explain(error: ValidationError) -> str:
    """The faults of one validation, in one line."""
    faults = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            faults.append(f"unknown key '{key}'{_nearest(key, valid_keys())}")
        elif fault["type"] == "missing":
            faults.append(f"'{key}' is missing")
        else:
            given = "" if isinstance(fault["input"], dict) else f" (given: {fault['input']!r})"
            faults.append(f"{key or 'configuration'}: {fault['msg'].removeprefix('Value error, ')}{given}")
    return "; ".join(faults)


def _nearest(name: str, valid: list[str]) -> str:
    """`` (nearest: 'x')``, by the whole dotted name or by its last part."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if not near:
        last = {key.rsplit(".", 1)[-1]: key for key in valid}
        near = [last[hit] for hit in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.6)]
    return f" (nearest: '{near[0]}')" if near else ""
