"""Files that a user gives to one stage, as artefacts: what a stage committed is taken as it is, other files are validated."""

from __future__ import annotations

import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ka2l_ray import schema
from ka2l_ray.actors.language_model import Model
from ka2l_ray.config import ModelConfig, PromptConfig
from ka2l_ray.errors import UserError
from ka2l_ray.jobs.stages.questions import ROWS_PER_PART, answer_key, input_key, questions
from ka2l_ray.models.adapters import check_adapter
from ka2l_ray.normalization import Form
from ka2l_ray.options import Shown, with_options
from ka2l_ray.questions import labels_of, read_rows, row_id, training_target
from ka2l_ray.store.artefacts import Artefact, StageDirectory, committed_artefact
from ka2l_ray.store.storage import Storage, file_digest

CUT = {"length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens"}
"""How servers and libraries say that an answer was cut at its greatest length."""
SAMPLED = pa.schema([schema.SAMPLES.field(name) for name in ("question_id", "question", "generations", "finish_reasons")])


class Inputs:
    """Imports into ``directory``, which lies beside the output so that workers reach it.

    Args:
        form: of texts that are the same.
        shown: whether options stand in the prompt.
    """

    def __init__(self, directory: str, form: Form = "unicode", shown: Shown = "show") -> None:
        self.directory, self.form, self.shown = directory, form, shown

    def questions(self, path: str, *, answered: bool = False) -> Artefact:
        """A questions table; a table with other columns (scores, a selection) serves too."""
        store = StageDirectory(f"{self.directory}/questions")
        found = self._committed(path, "question")
        return found or questions(store, "", path=path, form=self.form, shown=self.shown, answered=answered)

    def answers(self, path: str) -> Artefact:
        """id, answers, target."""
        store = StageDirectory(f"{self.directory}/answers")
        return self._committed(path, "answers") or answer_key(store, "", path=path, form=self.form, shown=self.shown)

    def samples(self, path: str) -> Artefact:
        """id, question, generations."""
        return self._committed(path, "question", "generations") or self._import(path, "samples", _sampled, SAMPLED)

    def answered(self, path: str, *, correct: str | None, answers: str | None, group: str | None) -> Artefact:
        """Sampled questions with whether the greedy answer is wrong, or with the accepted answers that ``judged`` needs.

        Args:
            correct: column that says whether it is right; None: the accepted answers are to be held against it.
            answers: file of the answers, where the samples have none.
            group: column whose values are judged apart.

        Raises:
            UserError: it is known of none, or of fewer than two of a group.
        """
        key = self.answers(answers) if answers else None
        known: dict[str, list[str]] = {}
        if key is not None:
            for row in key.storage.read_table("", columns=["question_id", "answers"]).to_pylist():
                known[row["question_id"]] = row["answers"]

        def convert(place: str, row: dict[str, Any]) -> dict[str, Any] | None:
            if row.get("error"):
                return None
            accepted = known.get(row_id(place, row)) or labels_of(place, row, self.form, self.shown)["answers"]
            return _answered(place, row, accepted, correct, group)

        how = {"correct": correct, "answers": key.key if key else None, "group": group}
        found = self._import(path, "answered", convert, schema.ANSWERED, how)
        rows = found.storage.read_table("", columns=["wrong", "answers", "group"])
        if rows["wrong"].null_count == rows["answers"].null_count == len(rows):
            lack = f"no row has '{correct}', true or false" if correct else "whether an answer is right is not known"
            raise UserError(f"{path}: {lack}; give --correct COLUMN, or 'greedy' with 'answers' (--answers FILE)")
        _check_groups(path, rows.to_pylist(), f"'{correct}'" if correct else "'greedy' with 'answers'", group)
        return found

    def annotations(self, path: str) -> Artefact:
        """id, question and target or answers."""
        convert = partial(_annotated, form=self.form, shown=self.shown)
        return self._committed(path, "question", "target") or self._import(path, "annotations", convert, schema.ANNOTATIONS)

    def chances(self, path: str) -> Artefact:
        """id, p_unknown, p_true and option_entropy, as far as they are there.

        Raises:
            UserError: none is.
        """
        found = self._import(path, "chances", _chances, schema.CHANCES)
        table = found.storage.read_table("")
        if all(table[name].null_count == len(table) for name in schema.CHANCES.names[1:]):
            raise UserError(f"{path}: no row has a 'p_unknown', 'p_true' or 'option_entropy'; give a file that has one of them")
        return found

    def scores(self, path: str) -> Artefact:
        """id and the columns that a strategy may rank by."""
        return self._committed(path, "question") or self._import(path, "scores", _scored, schema.SCORES.append(schema.COMBINED))

    def table(self, path: str) -> Artefact:
        """A directory that a stage committed, or one of Parquet files.

        Raises:
            UserError: anything else.
        """
        found = self._committed(path)
        if found is not None:
            return found
        if not Path(path).is_dir() or not list(Path(path).glob("*.parquet")):
            raise UserError(f"{path}: no such table; give a directory that a ka2l stage wrote")
        return Artefact(Path(path).name, input_key(path), {}, {}, 0.0, socket.gethostname(), str(Path(path).absolute()))

    def _committed(self, path: str, *columns: str) -> Artefact | None:
        found = committed_artefact(str(Path(path).absolute())) if Path(path).is_dir() else None
        if found is not None and columns:
            files = found.storage.parquet_files()
            there = found.storage.read_schema(files[0]).names if files else []
            lacking = [column for column in ("question_id", *columns) if column not in there]
            if lacking:
                raise UserError(
                    f"{path}: the table has no column '{lacking[0]}' (it has {', '.join(there) or 'none'}); give another"
                )
        return found

    def _import(
        self,
        path: str,
        name: str,
        convert: Callable[[str, dict[str, Any]], dict[str, Any] | None],
        wanted: pa.Schema,
        how: dict[str, Any] | None = None,
    ) -> Artefact:
        def build(work: Storage) -> dict[str, Any]:
            total = 0
            for rows in _chunks(path, convert):
                work.write_table(f"part-{total // ROWS_PER_PART:05d}.parquet", pa.Table.from_pylist(rows, schema=wanted))
                total += len(rows)
            return {"rows": total, "source": path}

        return StageDirectory(f"{self.directory}/{name}").compute(
            name, {"stage": name, "file": input_key(path), **(how or {})}, build
        )


def external_model(path: str, adapter: str | None, base: ModelConfig, prompt: PromptConfig) -> Model:
    """The model of a command line.

    Raises:
        UserError: no adapter there, a damaged one, or one for another model.
    """
    if adapter is None:
        return Model(base, prompt)
    weights = Path(adapter) / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(f"{adapter}: no adapter there (adapter_model.safetensors is missing); give a PEFT adapter's directory")
    committed = committed_artefact(str(Path(adapter).absolute()))
    settings = Path(adapter) / "adapter_config.json"
    if not settings.is_file():
        raise UserError(f"{adapter}: adapter_config.json is missing; give a PEFT adapter's directory")
    check_adapter(base, adapter)
    key = committed.key if committed else f"{file_digest(weights)}-{file_digest(settings)}"
    return Model(base, prompt, str(Path(adapter).absolute()), key)


def _chunks(path: str, convert: Callable[[str, dict[str, Any]], dict[str, Any] | None]) -> Iterator[list[dict[str, Any]]]:
    seen: set[str] = set()
    rows: list[dict[str, Any]] = []
    for place, row in read_rows(path):
        question_id = row_id(place, row)
        if question_id in seen:
            raise UserError(f"{place}: id '{question_id}' stands in an earlier row; ids must be unique")
        seen.add(question_id)
        converted = convert(place, row)
        if converted is None:
            continue
        rows.append({"question_id": question_id, **converted})
        if len(rows) == ROWS_PER_PART:
            yield rows
            rows = []
    if rows:
        yield rows
    if not seen:
        raise UserError(f"{path}: no rows in this file")


def _check_groups(path: str, rows: list[dict[str, Any]], lacking: str, by: str | None) -> None:
    """Raise a UserError where p(wrong) of a group could be fitted on one row or none."""
    of, known = Counter(row["group"] for row in rows), Counter(row["group"] for row in rows if _is_known(row))
    few = next((group for group in sorted(of) if known[group] < 2), None)
    if few is not None:
        which = f"of the rows with '{by}' {few}" if by else "of the rows"
        raise UserError(
            f"{path}: {known[few]} {which}, {of[few]} in all, have {lacking}; p(wrong) is fitted on two at least"
            + (" of each group: give more, or leave out the group, or --by" if by else ": give more")
        )


def _is_known(row: dict[str, Any]) -> bool:
    """Whether it is known, or can be judged, that the answer is wrong."""
    return row["wrong"] is not None or row["answers"] is not None


def _question(place: str, row: dict[str, Any]) -> str:
    question = row.get("question")
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{place}: the row has no 'question'; every row needs a question text")
    return question.strip()


def _sampled(place: str, row: dict[str, Any]) -> dict[str, Any]:
    generations = row.get("generations")
    if not isinstance(generations, list) or not all(isinstance(text, str) for text in generations):
        raise UserError(f"{place}: 'generations' must be a list of answers")
    if not generations:
        raise UserError(f"{place}: no generations; semantic entropy is of one answer at least, and says something from two on")
    ended = row.get("finish_reasons")
    if ended is not None and (
        not isinstance(ended, list) or len(ended) != len(generations) or not all(isinstance(each, str | None) for each in ended)
    ):
        raise UserError(
            f"{place}: 'finish_reasons' must be a list with a text (stop or length) or null for each of 'generations', "
            f"this is {ended!r:.60}"
        )
    reasons = None if ended is None else [_finish_reason(each) for each in ended]
    return {"question": _question(place, row), "generations": generations, "finish_reasons": reasons}


def _finish_reason(said: str | None) -> str | None:
    """``length`` where the answer was cut, in whatever words; any other reason as it is."""
    reason = said.strip().lower() if said is not None else None
    return "length" if reason in CUT else reason


def _answered(
    place: str, row: dict[str, Any], answers: list[str] | None, correct: str | None, group: str | None
) -> dict[str, Any]:
    if group is not None and row.get(group) is None:
        raise UserError(f"{place}: the row has no '{group}'; give a column that every row has")
    greedy = _text(place, row, "greedy")
    wrong: bool | None = None
    if correct is not None:
        if not isinstance(row.get(correct), bool | None):
            raise UserError(f"{place}: '{correct}' must be true or false, this is {row[correct]!r}")
        wrong = None if row.get(correct) is None else not row[correct]
    sampled = _sampled(place, row)
    drawn, last, logprob = row.get("token_logprobs"), row.get("greedy_token_ids"), _number(place, row, "greedy_logprob")
    if drawn is not None and not (
        isinstance(drawn, list) and len(drawn) == len(sampled["generations"]) and all(_are_numbers(tokens) for tokens in drawn)
    ):
        raise UserError(f"{place}: 'token_logprobs' must hold finite numbers, a list for each of 'generations'")
    if not isinstance(last, list | None):
        raise UserError(f"{place}: 'greedy_token_ids' must be a list of token ids, this is {last!r:.60}")
    return {
        **sampled,
        "greedy": greedy,
        "answers": answers if correct is None and greedy is not None else None,
        "wrong": wrong,
        "no_exact_match": None,
        "log_likelihoods": [sum(t) / max(1, len(t)) for t in drawn] if drawn else None,
        "greedy_log_likelihood": logprob / len(last) if last and logprob is not None else None,
        "group": str(row[group]) if group else "all",
    }


def _annotated(place: str, row: dict[str, Any], form: Form, shown: Shown) -> dict[str, Any]:
    question, found = _question(place, row), labels_of(place, row, form, shown)
    if found["answers"] is None:
        raise UserError(f"{place}: the row has no answers to train on; give 'target' or 'answers'")
    if found["options"] and shown == "show":
        question = with_options(question, found["options"])
    target = found["target"] or training_target(found["answers"])
    source = _text(place, row, "source") or "column"
    return {"question": question, "target": target, "answers": found["answers"], "source": source}


def _scored(place: str, row: dict[str, Any]) -> dict[str, Any]:
    names = ("p_unknown", "next_token_entropy", "option_entropy", "semantic_entropy", "combined")
    columns = {name: _number(place, row, name) for name in names}
    _check_probability(place, "p_unknown", columns["p_unknown"])
    return {"question": str(row.get("question") or ""), **columns, "error": _text(place, row, "error")}


def _chances(place: str, row: dict[str, Any]) -> dict[str, Any]:
    columns = {name: _number(place, row, name) for name in ("p_unknown", "p_true")}
    for name, value in columns.items():
        _check_probability(place, name, value)
    return {**columns, "option_entropy": _number(place, row, "option_entropy")}


def _check_probability(place: str, name: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise UserError(f"{place}: '{name}' must be a probability, this is {value!r}")


def _number(place: str, row: dict[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is not None and not _are_numbers([value]):
        raise UserError(f"{place}: '{name}' must be a finite number, this is {value!r:.60}")
    return value


def _are_numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers."""
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max for value in values
    )


def _text(place: str, row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    if not isinstance(value, str | None):
        raise UserError(f"{place}: '{name}' must be a text, this is {value!r:.60}")
    return value
