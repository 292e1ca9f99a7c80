"""Reading questions: JSON Lines or Parquet, validated row by row, with the place of every fault named."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ka2l_ray.errors import UserError
from ka2l_ray.normalization import Form, normalize_answer
from ka2l_ray.options import LETTERS, Shown, choice_of, question_key, with_options
from ka2l_ray.seeds import derive_seed

logger = logging.getLogger(__name__)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of each non-empty line; the place is ``file:line``."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
                ) from None
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not JSON ({error.msg}, column {error.colno}); fix or remove the line"
                ) from None
            except (ValueError, RecursionError) as error:
                what = "brackets nested too deep" if isinstance(error, RecursionError) else "a number of too many digits"
                raise UserError(f"{path}:{number}: JSON that cannot be read ({what}); fix or remove the line") from None
            if b"\\u" in line and not _encodes(row):
                raise UserError(f"{path}:{number}: half a character (\\ud800 to \\udfff) in a text; fix or remove it")
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: a row must be a JSON object, this is a {type(row).__name__}")
            yield f"{path}:{number}", row


def _encodes(value: Any) -> bool:
    """Whether all texts of a JSON value can be written: an escape may name a surrogate, which is no character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of each row of a Parquet file or a directory of them."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: no Parquet file in this directory")
    for file in files:
        number = 0
        try:
            table = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file}: not a Parquet file ({str(error).splitlines()[0]})") from None
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{file} row {number}", row


def read_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a ``.jsonl``/``.json`` or ``.parquet`` file, or of a directory of Parquet files.

    Raises:
        UserError: no such file, another format, or a malformed line.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; give a .jsonl or .parquet file")
    if path.is_dir() or path.suffix == ".parquet":
        return parquet_rows(path)
    if path.suffix in (".jsonl", ".json"):
        return json_lines(path)
    raise UserError(f"{path}: unknown format '{path.suffix}'; give a .jsonl or .parquet file")


def row_id(place: str, row: dict[str, Any]) -> str:
    """``id`` or ``question_id`` of a row; numbers become strings."""
    value = row.get("id", row.get("question_id"))
    if not isinstance(value, str | int) or value == "":
        raise UserError(f"{place}: the row has no 'id'; every row needs a unique id")
    return str(value)


class QuestionReader:
    """The rows of a pool or test file in ``schema.QUESTIONS``, one after another; ids and questions are remembered as digests.

    The same question twice (``options.question_key``) is given once; ``repeated`` counts the rest, the first of them is logged.

    Args:
        form: of texts that are the same.
        shown: whether options stand in the question; decides what answers it.
        answered: every row must have an answer, as those of a test set.

    Raises:
        UserError: no such file, malformed line, row without id or question, duplicate id, options without a right one.
    """

    def __init__(self, path: str | Path, *, form: Form = "unicode", shown: Shown = "show", answered: bool = False) -> None:
        self.path, self.form, self.shown, self.answered = path, form, shown, answered
        self.repeated = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        ids: set[int] = set()
        seen: set[int] = set()
        first_repeat = first_doubled = first_alike = ""
        doubled = alike = 0
        for place, row in read_rows(self.path):
            question_id = row_id(place, row)
            if derive_seed(question_id) in ids:
                raise UserError(f"{place}: id '{question_id}' stands in an earlier row; ids must be unique")
            ids.add(derive_seed(question_id))
            found = self._read(place, row)
            key = question_key(found["question"], found["options"], self.form)
            if key in seen:
                self.repeated += 1
                first_repeat = first_repeat or place
                continue
            seen.add(key)
            if found["options"] and len(set(found["options"])) < len(found["options"]):
                doubled += 1
                first_doubled = first_doubled or place
                if len(set(found["options"])) == 1:
                    alike += 1
                    first_alike = first_alike or place
            yield {"question_id": question_id, **found}
        if self.repeated:
            logger.warning(
                "%s: %d rows repeat an earlier question; kept once (first: %s)", self.path, self.repeated, first_repeat
            )
        if doubled:
            logger.warning(
                "%s: %d rows hold the same option twice, which counts as one (first: %s)", self.path, doubled, first_doubled
            )
        if alike:
            logger.warning(
                "%s: %d rows hold one option only, and any letter answers them; leave them out (first: %s)",
                *(self.path, alike, first_alike),
            )

    def _read(self, place: str, row: dict[str, Any]) -> dict[str, Any]:
        question, fact = row.get("question"), row.get("fact")
        if not isinstance(question, str) or not question.strip():
            raise UserError(f"{place}: the row has no 'question'; every row needs a question text")
        if isinstance(fact, bool) or not isinstance(fact, str | int | None):
            raise UserError(f"{place}: 'fact' must be an id, a text or a number")
        found = labels_of(place, row, self.form, self.shown)
        if self.answered and found["answers"] is None:
            lacking = "right option; give its 'label'" if found["options"] else "answers; every row of a test set needs them"
            raise UserError(f"{place}: the row has no {lacking}")
        if self.answered and not any(normalize_answer(answer, self.form) for answer in found["answers"]):
            raise UserError(f"{place}: no answer of the row says anything; every row of a test set needs one that does")
        question = question.strip()
        if found["options"] and self.shown == "show":
            question = with_options(question, found["options"])
        return {"question": question, **found, "fact": None if fact in (None, "") else str(fact)}


def labels_of(place: str, row: dict[str, Any], form: Form, shown: Shown) -> dict[str, Any]:
    """``answers``, ``target``, ``options`` and ``label`` (a letter) of a row, each None where it has none."""
    target = row.get("target")
    if not isinstance(target, str | None):
        raise UserError(f"{place}: 'target' must be a text, the answer to train on")
    target = target if target and target.strip() else None
    given = answers_of(place, row)
    answers = given or ([target] if target else None)
    choice = choice_of(place, row, answers or [], form)
    if choice is None:
        return {"answers": answers, "target": target, "options": None, "label": None}
    if target is not None and not choice.trains(target, given or [], form):
        raise UserError(f"{place}: 'target' is {target!r:.80}, neither the right option nor an answer; leave it out, or give one")
    return {
        "answers": choice.accepted(answers or [], shown) or None,
        "target": target or choice.target(shown),
        "options": list(choice.options),
        "label": None if choice.right is None else LETTERS[choice.right],
    }


def answers_of(place: str, row: dict[str, Any]) -> list[str] | None:
    """Accepted answers of a row; None where it has none."""
    answers = row.get("answers")
    if answers is None:
        return None
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{place}: 'answers' must be a list of strings")
    return [answer for answer in answers if answer.strip()] or None


def training_target(answers: Sequence[str]) -> str:
    """Of accepted answers without an order, the one to train on: that which shares the most words with the others (by mean F1 of
    their normal forms); of equals the shortest, then the first by character."""
    words = {answer: Counter(normalize_answer(answer).split()) for answer in answers}

    def shared(answer: str) -> float:
        mine = words[answer]
        return sum(2 * (mine & other).total() / max(1, mine.total() + other.total()) for other in words.values())

    return min(words, key=lambda answer: (-round(shared(answer), 9), len(answer), answer))
