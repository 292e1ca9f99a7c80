"""The configuration of a run: its sections and keys, with what they mean and may be. Defaults are the KA2L paper's."""

from __future__ import annotations

import difflib
import math
import os
import re
import string
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from ka2l_ray.extraction import Extract
from ka2l_ray.normalization import Form
from ka2l_ray.reading import Reading

BUNDLED_STUDENT = "bundled:student"
BUNDLED_JUDGE = "bundled:judge"
MOST_TOKEN_LAYERS = 4
ONE_EDIT = 0.85  # least ratio of difflib between "default" and what one slip makes of it

# What ``apply_chat_template`` is called with by ourselves.
RENDERING = {
    *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    *("tokenizer_kwargs", "strftime_now"),
}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


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
    """Said before the question; may be empty."""
    role: Literal["auto", "system", "user"] = "auto"
    """Of the instruction in a chat template. ``auto``: a system message where the template takes one and leaves it in its place,
    else the beginning of the first user turn."""
    examples: list[tuple[str, str]] = []
    """Few-shot (question, answer) pairs."""
    chat_template: Literal["auto", "never"] = "auto"
    """``auto``: the tokenizer's own template where it has one; ``never``: plain ``Question: ... Answer:`` text."""
    template_arguments: dict[str, Any] = {}
    """Handed to the chat template at every rendering, such as ``enable_thinking: false``. Dates are pinned without them."""
    prefill: str = ""
    """Text that every answer begins with; it is part of the prompt. An empty think block keeps a reasoning model from thinking,
    the header of the final channel does so for gpt-oss."""
    thinking: Literal["off", "strip"] = "off"
    """``off``: a model that thinks before it answers is refused; ``strip``: it may, and the block is left out of its answers
    (``sampling.max_tokens`` must leave room for it)."""

    options: Literal["show", "hide"] = "show"
    """Of multiple-choice questions: ``show`` puts them behind the question, a line each with its letter, and the letter answers;
    ``hide`` asks the question alone, and the option's text answers."""

    @field_validator("template_arguments")
    @classmethod
    def _not_ours(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if ours := sorted(RENDERING.intersection(arguments)):
            raise ValueError(f"'{ours[0]}' is what the template is rendered with, not an argument of its own; leave it out")
        return arguments

    @field_validator("thinking", mode="before")
    @classmethod
    def _off_is_a_word(cls, thinking: Any) -> Any:
        return "off" if thinking is False else thinking  # as YAML reads an unquoted off


TestKind = Literal["inductive", "transductive"]


class TestSet(Section):
    path: str
    """File of held-out questions with answers; none of them stands in the pool."""
    kind: TestKind
    """``inductive``: of other facts than the pool's; it measures format and forgetting. ``transductive``: the pool's own facts in
    other words, by a column ``fact`` in both files; it measures what labels teach."""


def _path_or_sets(test: Any) -> str | None:
    return "path" if isinstance(test, str) else "" if isinstance(test, dict) else None


# Told apart by what is given, so that a fault is one of that form alone; the tag of the sets is no part of a key.
TestSets = Annotated[
    Annotated[str, Tag("path")] | Annotated[dict[str, TestSet], Tag("")],
    Discriminator(
        _path_or_sets,
        custom_error_type="path_or_sets",
        custom_error_message="give a file, or {NAME: {path: FILE, kind: inductive or transductive}}",
    ),
]


class PoolConfig(Section):
    questions: str
    """File of unlabelled questions (.jsonl or .parquet): id, question and, where known, answers, target, fact; options and label
    where they are multiple choice."""
    test: TestSets | None = None
    """Held-out questions with answers: one file, which is inductive, or several test sets by name."""
    probing_size: int = Field(1000, ge=2)
    """Questions a round that are sampled to fit the probe (at most the unlabelled pool)."""

    @field_validator("test")
    @classmethod
    def _sets_differ(cls, test: str | dict[str, TestSet] | None) -> str | dict[str, TestSet] | None:
        if test is None or isinstance(test, str):
            return test
        if not test:
            raise ValueError("no test set is named; give one, or leave test out")
        named: dict[str, str] = {}
        for name, held_out in test.items():
            if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise ValueError(f"test set '{name}': a name is letters, digits, '_', '.' and '-'")
            file = os.path.realpath(held_out.path)
            if file in named:
                raise ValueError(f"test sets '{named[file]}' and '{name}' are one file, {held_out.path}; give each its own")
            named[file] = name
        return test

    @property
    def test_sets(self) -> dict[str, TestSet]:
        """By name; the name of a single path is empty."""
        if isinstance(self.test, str):
            return {"": TestSet(path=self.test, kind="inductive")}
        return self.test or {}


class SamplingConfig(Section):
    k: int = Field(10, ge=2)
    """Answers a question. Two at least: entropy needs something to compare."""
    temperature: float = Field(1.0, gt=0)
    """Of the k answers."""
    top_p: float = Field(1.0, gt=0, le=1)
    """The k answers are drawn from the likeliest tokens that together have this probability, after temperature and ``top_k``;
    1: from all. Semantic entropy's authors: temperature 1, top_p 0.9, top_k 50."""
    top_k: int | None = Field(None, ge=0)
    """The k answers are drawn from so many likeliest tokens; 0 or left out: from all."""
    greedy_temperature: float = Field(0.1, gt=0)
    """Of the one greedy-like answer, and of evaluation: from all tokens, whatever ``top_p`` and ``top_k``."""
    max_tokens: int = Field(64, ge=1)
    """Longest answer, tokens."""
    stop: list[Annotated[str, Field(min_length=1)]] = ["\n"]
    """An answer ends before any of these texts."""
    stop_when_decided: bool = False
    """Draw the k answers in waves, and no more where the label can no longer change: the label is exact, the semantic entropy a
    bound. Needs ``entropy.rule`` ka2l or fixed, whose threshold is known beforehand."""
    memo: str | None = None
    """Directory of answers to keep and to take up again: the same question, model, seed and settings are not sampled twice."""

    @field_validator("top_k")
    @classmethod
    def _all_tokens(cls, top_k: int | None) -> int | None:
        return top_k or None


Cpus = Annotated[float, Field(gt=0)] | Literal["auto"]


def reserved_cpus(cpus: float | Literal["auto"]) -> float:
    return 1.0 if cpus == "auto" else cpus


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
    cpus: Cpus = "auto"
    """CPUs that one copy reserves, and its threads. ``auto``: one is reserved; on a CPU it computes with all cores of its node,
    shared out over the copies there, or with one thread where the model is so small that more would only wait for each other."""
    gpus: float | Literal["auto"] = "auto"
    """GPUs of one copy over tensor_parallel x pipeline_parallel: 0 on CPUs, 1 on GPUs, a part where small copies share one.
    ``auto``: 1 where the cluster, or this machine, has GPUs, else 0; judges, probes and training then want GPUs too."""
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
    """Engines that may die in a row, with nothing written between, before a stage stops; one that goes with its node does not
    count. To single out a question that kills takes about 11."""
    deadline_factor: float = Field(10, gt=1)
    """An engine that takes so many times as long for a shard as is usual is taken for hung, ended, and its shard tried again."""
    deadline_least: float = Field(120, gt=0)
    """Seconds that a shard may take in any case."""
    placement_timeout: float = Field(600, gt=0)
    """Seconds to wait for the first place while other work holds the cluster, or where the last one is lost."""
    vllm: dict[str, Any] = {}
    """Further arguments of ``vllm.LLM``, such as gpu_memory_utilization, by their own names."""

    @property
    def reserved_cpus(self) -> float:
        """That Ray sets aside for one copy."""
        return reserved_cpus(self.cpus)

    @field_validator("gpus", mode="plain")
    @classmethod
    def _number_or_auto(cls, gpus: Any) -> float | Literal["auto"]:
        if gpus == "auto":
            return "auto"
        if isinstance(gpus, bool) or not isinstance(gpus, int | float) or not 0 <= gpus < math.inf:
            raise ValueError("give a number from 0 on, or auto")
        return float(gpus)

    @property
    def gpus_each(self) -> float:
        """``gpus`` as a number; none as long as ``auto`` is not resolved (``placement.with_gpus``)."""
        return 0.0 if self.gpus == "auto" else self.gpus

    @model_validator(mode="after")
    def _whole_gpus_where_sharded(self) -> Self:
        if self.gpus not in (0, 1, "auto") and self.tensor_parallel * self.pipeline_parallel > 1:
            raise ValueError(f"gpus is {self.gpus:g}; a copy that is split over GPUs takes whole ones: set gpus 1")
        return self


JudgeName = Literal["exact", "contains", "nli", "llm", "embedding", "cross_encoder"]
"""Each is a module of ``ka2l_ray.semantics.judges``."""
JudgePlace = Literal["here", "worker", "gpu"]
"""Where a judge works: in any process, at once; in a worker; in a worker that holds a model, and takes a GPU where there are."""


def _fault_of(pattern: str) -> str | None:
    """Why it is no regular expression; None: it is one."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        return str(error)
    except RecursionError:
        return "nested too deep"
    return None


def _fields_of(prompt: str) -> set[str]:
    """What stands in braces, with all that stands there; a brace without its other half is one too."""
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError:
        return {"{"}
    return {name + (f"!{how}" if how else "") + (f":{form}" if form else "") for _, name, form, how in parts if name is not None}


class JudgeSettings(Section):
    """Who says that two answers mean the same, or that an answer means what an accepted one says."""

    judge: JudgeName
    """``exact``: equal after normalisation; ``contains``: one holds the other, word for word (of correctness: the answer holds an
    accepted one); ``nli``: an NLI model; ``llm``: a language model; ``embedding``: a sentence encoder; ``cross_encoder``: a
    classifier of pairs that was fine-tuned for it."""
    nli_model: str = "microsoft/deberta-large-mnli"
    """Of ``nli``: a sequence-classification model; ``bundled:judge`` is the small one that ships with ka2l_ray."""
    encoder: str = "sentence-transformers/all-mpnet-base-v2"
    """Of ``embedding``: any sentence encoder."""
    similarity: float = Field(0.95, gt=-1, le=1)
    """Of ``embedding``: least cosine of answers that mean the same, each behind its question."""
    cross_encoder: str | None = None
    """Of ``cross_encoder``: a sequence-classification model with one label, or two, over pairs of answers."""
    cross_encoder_threshold: float | None = Field(None, gt=0, lt=1)
    """Of ``cross_encoder``: least probability of answers that mean the same; left out: the one in the model's config
    (``same_answer_threshold``), else 0.5."""
    llm_model: str | None = None
    """Of ``llm``: directory or hub name of a chat model; with ``endpoint``, its name there."""
    endpoint: str | None = None
    """Of ``llm``: base URL of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1; left out: the judge's workers hold
    the model. The key, if any, is read from the environment variable KA2L_JUDGE_API_KEY of the workers."""
    llm_prompt: str = (
        "Question: {question}\nAnswer A: {a}\nAnswer B: {b}\n"
        "Do answers A and B mean the same, as answers to this question? Say yes or no."
    )
    """Of ``llm``: must hold {question}, {a} and {b}; the model says yes or no."""
    replicas: int = Field(1, ge=1)
    """Judge actors."""
    batch_tokens: int = Field(4096, ge=1)
    """Tokens of one forward pass of the judge, padding included."""
    cache: str | None = None
    """Directory of verdicts to keep and to take up again: no pair of texts is put to the same judge twice."""

    @model_validator(mode="after")
    def _judge_is_whole(self) -> Self:
        if self.judge == "cross_encoder" and self.cross_encoder is None:
            raise ValueError("judge cross_encoder needs cross_encoder, the model that judges")
        if self.judge == "llm":
            if self.llm_model is None:
                raise ValueError("judge llm needs llm_model, the language model that judges (with endpoint: its name there)")
            if not _fields_of(self.llm_prompt) <= {"question", "a", "b"}:
                raise ValueError("llm_prompt may hold {question}, {a} and {b} in braces, and nothing else")
            if not all(name in self.llm_prompt for name in ("{question}", "{a}", "{b}")):
                raise ValueError("llm_prompt must hold {question}, {a} and {b}")
        return self


class EntropyConfig(JudgeSettings):
    judge: JudgeName = "nli"
    """Who says that two answers mean the same. ``exact``: equal after normalisation; ``contains``: one holds the other, word for
    word; ``nli``: an NLI model; ``llm``: a language model; ``embedding``: a sentence encoder; ``cross_encoder``: a classifier of
    pairs that was fine-tuned for it."""
    equivalence: Literal["strict", "lenient"] = "strict"
    """``strict``: entailment both ways; ``lenient``: no contradiction and not both neutral."""
    policy: Literal["founder_last", "founder_first"] = "founder_last"
    """How clusters form where verdicts are not transitive."""
    rule: Literal["auto", "ka2l", "two_means", "quantile", "fixed"] = "auto"
    """Threshold between known and unknown. ``ka2l`` is Eq. 3-4, whose optimum is 0.5 nats: of ten answers nine mean the same, of
    five all. ``auto``: that constant, or ``two_means`` where the constant leaves one class less than a twentieth; decided in the
    first round, and its threshold kept for the run."""
    quantile: float = Field(0.5, gt=0, lt=1)
    """For ``quantile``: share of questions below the threshold."""
    threshold: float = Field(0.5, ge=0)
    """For ``fixed``: nats."""
    audit: float = Field(0.02, ge=0, le=1)
    """Share of questions of which every pair of answers is judged, to count non-transitive triples."""
    abstentions: Literal["unknown", "known", "drop"] = "unknown"
    """Label of a question that goes without an answer: no meaning of its samples has more of them than silence and abstention ("I
    don't know") together. ``known``: its semantic entropy decides; ``drop``: none, and the probe is fitted without it. Whatever
    the label, it is never replayed."""
    abstention_patterns: list[str] = ["default"]
    """Regular expressions that find an answer's clause that declines to answer; ``default`` stands for those of
    ``ka2l_ray.semantics.abstention_patterns``."""
    abstention_prompt: str | None = None
    """Of judge ``llm``: asked of every answer that no pattern finds, with {question} and {answer} filled in; yes: it declines."""
    label_only: bool = False
    """Ask no verdict that the label known/unknown does not need: the label is exact, the semantic entropy a bound. Needs rule
    ka2l or fixed, whose threshold is known beforehand."""

    @model_validator(mode="after")
    def _label_only_knows_its_threshold(self) -> Self:
        if self.label_only and self.rule not in ("ka2l", "fixed"):
            raise ValueError(
                f"label_only needs a threshold that is known beforehand, and entropy.rule is {self.rule}; set entropy.rule=ka2l"
            )
        if self.label_only and self.abstentions == "drop":
            raise ValueError("abstentions drop needs every answer settled, which label_only spares; leave one of them out")
        return self

    @field_validator("abstention_patterns")
    @classmethod
    def _patterns_are_regular(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            if fault := _fault_of(pattern):
                raise ValueError(f"'{pattern}' is not a regular expression ({fault})")
            if re.search(pattern, ""):
                raise ValueError(
                    f"'{pattern}' finds the empty text, and so every answer would abstain; give one that asks for words"
                )
            if pattern != "default" and difflib.get_close_matches(pattern.strip().lower(), ["default"], cutoff=ONE_EDIT):
                raise ValueError(f"'{pattern}' is nearly 'default', which stands for ka2l_ray's own patterns; write that")
        return patterns

    @model_validator(mode="after")
    def _abstentions_can_be_asked_about(self) -> Self:
        if self.abstention_prompt is not None:
            if self.judge != "llm":
                raise ValueError(f"abstention_prompt is put to a language model, judge is {self.judge}; set entropy.judge=llm")
            if not _fields_of(self.abstention_prompt) <= {"question", "answer"}:
                raise ValueError("abstention_prompt may hold {question} and {answer} in braces, and nothing else")
            if "{answer}" not in self.abstention_prompt:
                raise ValueError("abstention_prompt must hold {answer}")
        return self


class ProbeConfig(Section):
    kind: Literal["mlp", "linear"] = "mlp"
    """``mlp`` is KA2L's (4 linear layers, 1 SiLU); ``linear`` is ridge logistic regression, fitted to convergence."""
    target: Literal["label", "soft", "semantic_entropy"] = "label"
    """What is fitted: ``label``, known or unknown; ``soft``, the share of a question's answers outside their largest meaning;
    ``semantic_entropy`` itself, as a share of the most that k answers can have. The latter two need no threshold; where there are
    labels of both kinds, p(unknown) is still calibrated against them."""
    position: Literal["last_prompt_token", "mean", "attention"] = "last_prompt_token"
    """Whose states are read: the prompt's last token, the mean over the prompt's tokens, or its last 64 tokens, weighed as the
    probe learns to (a few ``layers`` only, for it keeps the states of every token)."""
    standardize: bool = True
    """By the training part's mean and scale, which are stored with the probe; ``linear`` always does. ``mlp`` then has biases,
    without which it hardly reads a direction in such states; the paper's, of states as they are, has none."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """``balanced``: known and unknown weigh alike in the loss, however many of each there are."""
    calibration: Literal["auto", "platt", "isotonic", "none"] = "auto"
    """Of p(unknown), on rows that the probe was not fitted on: Platt's sigmoid, an isotonic curve, or neither. ``auto``:
    isotonic where there are 1000 different questions among such rows."""
    hidden_width: int = Field(14336, ge=1)
    """Inner width of ``mlp``."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of ``mlp``: Adam's. The paper's is 1e-5, on states as they are."""
    epochs: int = Field(200, ge=1)
    """Of ``mlp``: passes over the probing set's training part, at most."""
    early_stopping: bool = True
    """Of ``mlp``: end when the validation loss has not fallen for ``patience`` epochs, and keep the weights of its lowest."""
    patience: int = Field(5, ge=1)
    """Epochs."""
    batch_size: int = Field(32, ge=1)
    """Of ``mlp``: questions of one step."""
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

    @model_validator(mode="after")
    def _few_layers_of_tokens(self) -> Self:
        if self.position == "attention" and (self.layers == "all" or len(self.layers) > MOST_TOKEN_LAYERS):
            raise ValueError(
                f"position attention keeps the states of every token: name {MOST_TOKEN_LAYERS} layers at most, such as the "
                "middle one (layers: [16] of 32)"
            )
        return self


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
    """Rank of the LoRA matrices, on the linear layers of the decoder and on its experts, each of them; never on routers."""
    lora_experts: bool = True
    """LoRA on experts that one tensor holds together (a mixture of experts in transformers). vLLM is not given such adapters."""
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
    cpus: Cpus = "auto"
    """CPUs that one worker reserves and its threads, as of ``engine.cpus``."""
    replay_known: float = Field(1.0, ge=0)
    """Predicted-known, unlabelled questions with the model's own majority answer, per labelled question. Costs no label."""
    checkpoint_every: int = Field(200, ge=1)
    """Optimiser steps between checkpoints inside the stage."""

    @property
    def reserved_cpus(self) -> float:
        """That Ray sets aside for one worker."""
        return reserved_cpus(self.cpus)


class EvaluationConfig(JudgeSettings):
    judge: JudgeName = "exact"
    """Who says that an answer is right: that it means what one of the accepted answers says, given the question. Figures under it
    stand beside exact match. ``exact``: equal after normalisation; ``contains``: it holds an accepted answer, word for word;
    ``nli``: it entails one; ``llm``, ``embedding``, ``cross_encoder``: it means the same as one."""
    extract: Literal["last_number", "letter", "regex"] | None = None
    """What of an answer's text is compared, by metrics, judges and entropy: its last number, the letter of an option, or what
    ``extract_pattern`` finds; left out: all of it."""
    extract_pattern: str | None = None
    """Of ``regex``: the last match that says something counts, or the first group that takes part in it."""
    bert_score: str | None = None
    """Directory or hub name of an encoder for BERTScore, such as roberta-large; left out: no BERTScore."""
    bert_score_layer: int | None = Field(None, ge=0)
    """Of it, 0 being the embeddings; left out: the one that the bert-score package took for a model of this name, else two thirds
    of the depth."""
    bootstrap: int = Field(1000, ge=1)
    """Resamples behind each interval."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Coverage of each interval."""

    @model_validator(mode="after")
    def _pattern_of_regex(self) -> Self:
        if (self.extract == "regex") != (self.extract_pattern is not None):
            raise ValueError("extract_pattern and extract: regex go together; set both, or neither")
        if self.extract_pattern is not None:
            if not self.extract_pattern.strip():
                raise ValueError("extract_pattern is empty, and would find nothing in any answer; give a regular expression")
            if fault := _fault_of(self.extract_pattern):
                raise ValueError(f"extract_pattern is no regular expression ({fault})")
        return self


class StoppingConfig(Section):
    max_rounds: int = Field(1, ge=1)
    """Rounds at most."""
    max_labels: int | None = Field(None, ge=1)
    """Labels at most, over all rounds."""
    min_unknown_share: float = Field(0.0, ge=0, le=1)
    """Stop when the share of the pool that is predicted unknown falls below this."""
    plateau_rounds: int | None = Field(None, ge=1)
    """Stop when the share right (``evaluation.judge``) has not risen by ``plateau_gain`` for this many rounds: on the first
    transductive test set, where labels pay, else on the first of all."""
    plateau_gain: float = Field(0.005, ge=0)
    """Least rise that counts, as a share of the test set."""


class RunConfig(Section):
    """A whole run."""

    output: str = Field("runs/ka2l", min_length=1)
    """The run directory; on a cluster a path that all nodes share."""
    seed: int = 0
    """All randomness derives from it."""
    ray_address: str | None = None
    """Cluster to join; left out: the one in RAY_ADDRESS, else a local one for this run."""
    reuse: list[str] = []
    """Other run directories whose artefacts are taken over where the content key is equal."""
    normalize: Form = "unicode"
    """When two answers, or two questions, are the same: ``unicode`` for any language; ``squad`` is SQuAD's, as in papers."""
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

    @property
    def reading(self) -> Reading:
        """What of an answer is compared, and its normal form."""
        how = self.evaluation.extract
        return Reading(self.normalize, Extract(how, self.evaluation.extract_pattern or "") if how is not None else None)

    @model_validator(mode="after")
    def _threshold_known_before_sampling(self) -> Self:
        if self.sampling.stop_when_decided and self.entropy.rule not in ("ka2l", "fixed"):
            raise ValueError(
                "sampling.stop_when_decided needs a threshold that is known beforehand, and entropy.rule is "
                f"{self.entropy.rule}; set entropy.rule=ka2l, or leave stop_when_decided out"
            )
        if self.sampling.stop_when_decided and self.entropy.abstentions == "drop":
            raise ValueError(
                "entropy.abstentions drop needs all k answers, which sampling.stop_when_decided spares; leave one of them out"
            )
        if self.engine.hidden_states == "vllm" and self.probe.position != "last_prompt_token":
            raise ValueError(
                f"probe.position {self.probe.position} reads more than a prompt's last token, which vLLM does not hand on; "
                "set engine.hidden_states=transformers"
            )
        bounds = {"sampling.stop_when_decided": self.sampling.stop_when_decided, "entropy.label_only": self.entropy.label_only}
        for key, on in bounds.items():
            if on and self.selection.strategy == "semantic_entropy":
                raise ValueError(f"selection.strategy semantic_entropy ranks by what {key} only bounds; leave it out")
            if on and self.probe.target != "label":
                raise ValueError(f"probe.target {self.probe.target} is fitted to what {key} only bounds; leave it out")
        return self


# Sections and keys that say where and how long a run goes, not what it computes: they may differ when a run goes on.
NOT_CONTENT = (
    "output",
    "ray_address",
    "reuse",
    "stopping",
    "engine.replicas",
    "engine.cpus",
    "finetune.cpus",
    "engine.max_attempts",
    "engine.max_error_rate",
    "engine.max_model_len",
    "engine.vllm.gpu_memory_utilization",
    "engine.vllm.kv_cache_memory_bytes",
    "engine.vllm.swap_space",
    "engine.vllm.cpu_offload_gb",
    "engine.max_restarts",
    "engine.deadline_factor",
    "engine.deadline_least",
    "engine.placement_timeout",
    "sampling.memo",
    "entropy.replicas",
    "entropy.batch_tokens",
    "entropy.cache",
    "evaluation.replicas",
    "evaluation.batch_tokens",
    "evaluation.cache",
    "probe.workers",
    "finetune.checkpoint_every",
    "finetune.gradient_checkpointing",
    "finetune.workers",
    "finetune.micro_batch_size",
)

# What all rounds of a run must have in common to be held against each other; anything else may change from a round on.
OF_THE_WHOLE_RUN = ("seed", "model", "prompt", "normalize", "pool", "evaluation")
