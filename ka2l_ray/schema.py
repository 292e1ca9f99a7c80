"""The tables that stages exchange: one Arrow schema each. Every row is keyed by ``question_id``; row order means nothing.

Field metadata holds the unit or meaning; the schema version goes into the file metadata.
"""

from __future__ import annotations

from typing import Literal

import pyarrow as pa

SCHEMA_VERSION = 5

Position = Literal["last_prompt_token", "mean", "attention", "answer_token"]
"""Of a hidden state: KA2L's; the mean over the prompt's tokens; the prompt's last ``MOST_TOKENS`` tokens, one state each, for a
probe that weighs them; or the last token but one of the greedy-like answer (the SLT of the semantic-entropy probes)."""
MOST_TOKENS = 64


def _field(name: str, kind: pa.DataType, meaning: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"meaning": meaning})


def _schema(name: str, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"table": name, "schema_version": str(SCHEMA_VERSION)})


_ID = _field("question_id", pa.string(), "unique in the pool")
_QUESTION = _field("question", pa.string(), "the text asked")

_ERROR = _field("error", pa.string(), "why the question could not be done, after several attempts; null: done", nullable=True)

QUESTIONS = _schema(
    "questions",
    [
        _ID,
        _QUESTION,
        _field("answers", pa.list_(pa.string()), "any of them is right; null: not labelled", nullable=True),
        _field("target", pa.string(), "the answer to train on; null: one of the answers is chosen", nullable=True),
        _field("options", pa.list_(pa.string()), "of a multiple-choice question; its text holds them where they are shown", True),
        _field("label", pa.string(), "letter of the right option", nullable=True),
        _field("fact", pa.string(), "what it asks, as a shared id: other words for one fact have the same", nullable=True),
    ],
)

NEAR_DUPLICATES = _schema(
    "near_duplicates",
    [
        _ID,
        _QUESTION,
        _field("pool_id", pa.string(), "the nearest question of the pool"),
        _field("pool_question", pa.string(), "its text"),
        _field("shared", pa.float64(), "words in both over words in either"),
    ],
)

SAMPLES = _schema(
    "samples",
    [
        _ID,
        _QUESTION,
        _field("prompt", pa.string(), "the text given to the model", nullable=True),
        _field("generations", pa.list_(pa.string()), "k answers at the sampling temperature, thoughts left out", nullable=True),
        _field("token_ids", pa.list_(pa.list_(pa.int32())), "of each generation, thoughts and end token included", nullable=True),
        _field("token_logprobs", pa.list_(pa.list_(pa.float32())), "nats, of each token, before temperature", nullable=True),
        _field("finish_reasons", pa.list_(pa.string()), "stop or length", nullable=True),
        _field("greedy", pa.string(), "one answer at the evaluation temperature", nullable=True),
        _field("greedy_token_ids", pa.list_(pa.int32()), "of that answer, end token included", nullable=True),
        _field("greedy_logprob", pa.float32(), "nats, sum over its tokens", nullable=True),
        _ERROR,
    ],
)

PREDICTIONS = _schema(
    "predictions",
    [_ID, _QUESTION, _field("prediction", pa.string(), "answer at the evaluation temperature", nullable=True), _ERROR],
)

P_TRUE = _schema(
    "p_true",
    [_ID, _QUESTION, _field("p_true", pa.float64(), "the model's probability that its greedy answer is right", True), _ERROR],
)

ANSWERED = _schema(
    "answered",
    [
        _ID,
        _QUESTION,
        _field("generations", pa.list_(pa.string()), "sampled answers"),
        _field("greedy", pa.string(), "the answer that is right or wrong", nullable=True),
        _field("answers", pa.list_(pa.string()), "accepted ones, where the answer is to be held against them", nullable=True),
        _field("wrong", pa.bool_(), "whether it is wrong; null: not known", nullable=True),
        _field("no_exact_match", pa.bool_(), "whether it equals no accepted one; null: not known", nullable=True),
        _field("log_likelihoods", pa.list_(pa.float64()), "nats, mean over each sampled answer's tokens", nullable=True),
        _field("greedy_log_likelihood", pa.float64(), "nats, mean over that answer's tokens", nullable=True),
        _field("group", pa.string(), "rows of a group are judged apart from others, such as a model's"),
    ],
)

CHANCES = _schema(
    "chances",
    [
        _ID,
        _field("p_unknown", pa.float64(), "a probe's probability that the question is unknown", nullable=True),
        _field("p_true", pa.float64(), "the model's probability that its greedy answer is right", nullable=True),
        _field("option_entropy", pa.float64(), "nats, of the options' likelihoods", nullable=True),
    ],
)

CLUSTERS = _schema(
    "clusters",
    [
        _ID,
        _QUESTION,
        _field("semantic_entropy", pa.float64(), "nats, KA2L Eq. 2; of all answers asked for, or a bound on it"),
        _field(
            "bound",
            pa.string(),
            "exact; lower, upper: not all answers were drawn or settled, and it is no less, no more than that",
        ),
        _field("cluster_ids", pa.list_(pa.int32()), "meaning of each settled generation, numbered by first appearance"),
        _field("majority_answer", pa.string(), "commonest form within the largest cluster"),
        _field("judge_calls", pa.int32(), "(premise, hypothesis) pairs put to the judge, those of the audit too"),
        _field("cached_verdicts", pa.int32(), "verdicts taken from entropy.cache"),
        _field(
            "reference_calls",
            pa.int32(),
            "pairs that the literal founder_last asks about; null: not all answers settled",
            nullable=True,
        ),
        _field("empty_answers", pa.int32(), "answers without a word, which are one meaning of their own"),
        _field("drawn", pa.int32(), "answers drawn"),
        _field("abstentions", pa.int32(), "answers that decline to answer"),
        _field("cut_answers", pa.int32(), "answers that ended at sampling.max_tokens, or at the model's length"),
        _field("declines", pa.list_(pa.bool_()), "of each settled generation: whether it is silence or an abstention"),
        _field("abstains", pa.bool_(), "no meaning has more answers than silence and abstention together"),
        _field("replayable", pa.bool_(), "the majority answer answers, was not cut, and the question does not abstain"),
        _field("paragraph", pa.bool_(), "whether more than half of the answers are paragraphs"),
        _field("truncated", pa.int32(), "verdicts on texts longer than the judge takes"),
        _field("unparsable", pa.int32(), "verdicts that could not be read, taken for neutral"),
        _field("triples", pa.int32(), "triples of distinct answers whose verdicts are all known"),
        _field("non_transitive_triples", pa.int32(), "of those, how many break transitivity"),
    ],
)

_LABEL = "1 unknown, 0 known, KA2L Eq. 5; by entropy.abstentions where the question abstains, null: dropped"
ENTROPY = _schema("entropy", [*CLUSTERS, _field("label", pa.int8(), _LABEL, nullable=True)])

P_WRONG = _field("p_wrong", pa.float64(), "probability that the greedy answer is wrong, calibrated on labelled questions")
"""Beside ``ENTROPY``, where it is asked for."""

PROBE_LAYERS = _schema(
    "probe_layers",
    [
        _field("layer", pa.int32(), "index as in transformers' hidden_states"),
        _field("validation_auroc", pa.float64(), "against the target: share of pairs in the right order"),
        _field("validation_accuracy", pa.float64(), "share right at p = 0.5, not calibrated"),
        _field("validation_loss", pa.float64(), "cross-entropy with the target, nats; not calibrated"),
        _field("train_loss", pa.float64(), "of the epoch whose weights were kept, as it is weighed in training, nats"),
    ],
)

SCORES = _schema(
    "scores",
    [
        _ID,
        _QUESTION,
        _field("p_unknown", pa.float32(), "the probe's probability; null where no probe was fitted", nullable=True),
        _field("next_token_entropy", pa.float32(), "nats at the last prompt token, T=1", nullable=True),
        _field("option_entropy", pa.float32(), "nats, of the options' likelihoods; null where there are none", nullable=True),
        _field("semantic_entropy", pa.float64(), "nats; only where the question was sampled; ln k where it abstains", True),
        _ERROR,
    ],
)

COMBINED = _field("combined", pa.float64(), "p(wrong) by several scores; only where the question was sampled", nullable=True)
"""Beside ``SCORES``, where a table of all scores is chosen from."""

SELECTION = _schema(
    "selection",
    [
        _ID,
        _QUESTION,
        _field("acquisition", pa.float64(), "score that the strategy ranked by; null where it drew at random", nullable=True),
        _field("rank", pa.int32(), "0 is chosen first"),
    ],
)

ANNOTATIONS = _schema(
    "annotations",
    [
        _ID,
        _QUESTION,
        _field("target", pa.string(), "text to train on"),
        _field("answers", pa.list_(pa.string()), "all accepted answers"),
        _field("source", pa.string(), "column: a label that was paid for; replay: the model's own majority answer, free"),
    ],
)

CORRECTNESS = _schema(
    "correctness",
    [
        _ID,
        _field("correct", pa.bool_(), "right by the judge, or by exact match"),
        _field("exact_match", pa.bool_(), "equal to an accepted answer after normalisation"),
        _field("judge_calls", pa.int32(), "(answer, accepted answer) pairs put to the judge"),
        _field("cached_verdicts", pa.int32(), "verdicts taken from evaluation.cache"),
        _field("truncated", pa.int32(), "verdicts on texts longer than the judge takes"),
        _field("unparsable", pa.int32(), "verdicts that could not be read, taken for wrong"),
    ],
)

EVALUATION = _schema(
    "evaluation",
    [
        _ID,
        _QUESTION,
        _field("prediction", pa.string(), "answer at the evaluation temperature; empty where the question could not be done"),
        _field("answers", pa.list_(pa.string()), "accepted answers"),
        _field("correct", pa.float64(), "1 or 0, by evaluation.judge"),
        _field("exact_match", pa.float64(), "1 or 0, best over aliases"),
        _field("token_f1", pa.float64(), "0 to 1, best over aliases"),
        _field("rouge_l", pa.float64(), "F-measure, 0 to 1, best over aliases"),
        _field("bleu", pa.float64(), "sentence BLEU, 0 to 1, all aliases as references"),
        _field("meteor", pa.float64(), "0 to 1, best over aliases"),
        _field("bert_score", pa.float64(), "F1, best over aliases; null where no encoder is named", nullable=True),
        _field("known_before", pa.bool_(), "greedy answer right before any training, by evaluation.judge", nullable=True),
        _field("exact_match_before", pa.bool_(), "greedy answer right before any training, by exact match", nullable=True),
    ],
)


def hidden_states(
    dimension: int, layers: list[int], stored: pa.DataType, model_dtype: str, position: Position = "last_prompt_token"
) -> pa.Schema:
    """Schema of the hidden-state table: one fixed-size-list column a layer, ``layer_<l>``; of ``attention`` a list of them.

    Layer 0 is the embeddings, l the output of block l, the last one after the final norm (Llama-like models).
    """
    where = position.replace("_", " ")
    state = pa.list_(stored, dimension)
    kind = pa.list_(state) if position == "attention" else state
    columns = [_field(f"layer_{layer}", kind, where, nullable=True) for layer in layers]
    table = _schema("hidden_states", [_ID, _QUESTION, _ERROR, *columns])
    return table.with_metadata({**(table.metadata or {}), b"model_dtype": model_dtype.encode(), b"position": position.encode()})
