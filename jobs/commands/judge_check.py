"""``ka2l judge-check``: pairs of a run's answers for a person, and the judge's accuracy by the person's word.

RUN/judge_check holds what was drawn: ``pairs.csv`` to fill in, ``page.html`` to click through, and ``drawn.json`` with the
judge's verdicts, which who fills in the pairs does not see.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import jinja2
import typer
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ka2l_ray.errors import UserError
from ka2l_ray.extraction import Extract
from ka2l_ray.questions import json_lines
from ka2l_ray.reading import READING, Reading
from ka2l_ray.semantics.judge_check import AnswerPair, Checked, Draw, Estimate, answer_pairs, check
from ka2l_ray.store.artefacts import Artefact, RunStore
from ka2l_ray.store.storage import Storage, canonical_json

DRAWN, PAIRS, PAGE, RESULT, JUDGED = "drawn.json", "pairs.csv", "page.html", "result.json", "judged.jsonl"
COLUMNS = ("id", "question", "a", "b", "same")
WORDS = {"yes": True, "y": True, "1": True, "true": True, "same": True}
WORDS |= {"no": False, "n": False, "0": False, "false": False, "different": False}


class _Pair(TypedDict):
    id: str
    question: str
    a: str
    b: str
    stratum: Literal["merged", "merged, borderline", "separated", "separated, borderline"]


class _Drawn(TypedDict):
    """What ``drawn.json`` holds."""

    entropy: str
    artefact: str
    seed: int
    asked: int
    population: dict[str, int]
    pairs: list[_Pair]


_DRAWN = TypeAdapter(_Drawn)


def draw(run: str, *, pairs: int, seed: int) -> str:
    """Draw pairs of the last round that has clusters, and write them; what is there from the same draw stays as it is.

    Returns:
        What to do with it, in words.

    Raises:
        UserError: no run, no clusters or no pairs there, or pairs of another draw.
    """
    samples, entropy = _clustered_round(run)
    drawing = Draw(pairs, seed)
    answers = {row["question_id"]: row for row in _rows(samples.storage, ["question_id", "question", "generations"])}
    reading = _reading(entropy)
    for row in _rows(entropy.storage, ["question_id", "cluster_ids", "declines"]):
        asked = answers.pop(row["question_id"], None)
        said = (asked["generations"] if asked else None) or []
        if asked is None or not len(row["declines"]) == len(row["cluster_ids"]) <= len(said):
            raise UserError(
                f"{samples.url}: question '{row['question_id']}' has not the answers that {entropy.url} clustered; "
                "delete both, and let the run make them again"
            )
        drawing.add(row["question_id"], answer_pairs(asked["question"], said, row["cluster_ids"], row["declines"], reading))
    drawn = drawing.drawn()
    if not drawn:
        raise UserError(f"{run}: no question has two different answers; there is nothing that the judge decided")
    numbered = [{"id": str(number), **asdict(pair)} for number, pair in enumerate(drawn, 1)]
    document = {"entropy": entropy.key, "artefact": entropy.name, "seed": seed, "asked": pairs}
    document |= {"population": dict(drawing.population), "pairs": numbered}
    storage = Storage(run).at("judge_check")
    if storage.exists(DRAWN):
        if _read_drawn(run) != document:
            raise UserError(
                f"{storage.url(DRAWN)}: holds another draw (of other answers, or another --pairs or --seed); "
                "move the directory away to draw again"
            )
    else:
        storage.write_bytes(PAIRS, _table(numbered).encode())
        storage.write_bytes(PAGE, _page(run, numbered).encode())
        storage.write_bytes(DRAWN, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    borderline = sum(pair.stratum.endswith("borderline") for pair in drawn)
    return (
        f"{len(drawn)} pairs of {entropy.name} ({borderline} borderline): open {storage.url(PAGE)} in a browser, or fill in the "
        f"column 'same' of a copy of {storage.url(PAIRS)}, yes or no; then ka2l judge-check {run} --labels FILE"
    )


def evaluate(run: str, labels: str) -> tuple[str, Checked]:
    """(which judge, how good it is by a person's word in file ``labels``); also written to RUN/judge_check/result.json.

    What the person said lies in RUN/judge_check/judged.jsonl then, as ``ka2l judge-pairs`` and ``ka2l judge-train`` read it.

    Raises:
        UserError: nothing was drawn, the run's clusters are others by now, or a malformed file.
    """
    _, entropy = _clustered_round(run)
    document = _read_drawn(run)
    if document["entropy"] != entropy.key:
        raise UserError(
            f"{run}: its pairs were drawn from {document['artefact']} as it was; {entropy.name} is the last one now; "
            "move RUN/judge_check away and draw again"
        )
    drawn = [AnswerPair(row["question"], row["a"], row["b"], row["stratum"]) for row in document["pairs"]]
    places = {row["id"]: place for place, row in enumerate(document["pairs"])}
    same = read_labels(labels, places)
    found = check(drawn, document["population"], same)
    judge = str(entropy.inputs.get("entropy", {}).get("judge", "judge"))
    result = {"judge": judge, "entropy": entropy.key, **asdict(found)}
    storage = Storage(run).at("judge_check")
    judged = [{"id": document["pairs"][i]["id"], **asdict(drawn[i]), "label": int(word)} for i, word in sorted(same.items())]
    storage.write_bytes(JUDGED, "".join(canonical_json(row) + "\n" for row in judged).encode())
    storage.write_bytes(RESULT, (_json(result) + "\n").encode())
    return judge, found


def say(judge: str, found: Checked) -> None:
    """Print what a person's word says."""

    def put(of: str, share: Estimate, behind: str) -> None:
        if not share.pairs:
            typer.echo(f"{of}: no labelled pair {behind}")
            return
        typer.echo(f"{of}: {share.value:.3f}, 95 % interval {share.low:.3f} to {share.high:.3f} ({share.pairs} pairs {behind})")

    typer.echo(f"judge {judge}: {found.labelled} of {found.drawn} pairs labelled")
    put("accuracy, on all pairs of different answers of the run", found.accuracy, "labelled")
    put("false merges, of the pairs it calls the same", found.false_merges, "that it calls the same")
    put("false splits, of the pairs it holds apart", found.false_splits, "that it holds apart")
    unseen = [name for name, row in found.strata.items() if row["pairs"] and not row["labelled"]]
    if unseen:
        typer.echo(f"no pair is labelled of these kinds, which the figures leave out: {'; '.join(unseen)}")


def read_labels(path: str, places: dict[str, int]) -> dict[int, bool]:
    """A person's word by place of the pair; rows whose ``same`` is empty are left out.

    Raises:
        UserError: no such file, or a row with another id or word; the message names file and line.
    """
    same: dict[int, bool] = {}
    seen: dict[str, str] = {}
    for place, row in _label_rows(path):
        pair_id, word = str(row.get("id") or "").strip(), row.get("same")
        if pair_id not in places:
            raise UserError(f"{place}: no pair '{pair_id}' was drawn; keep the column 'id' of {PAIRS} as it is")
        if pair_id in seen:
            raise UserError(f"{place}: pair '{pair_id}' stands in {seen[pair_id]} already; keep one of the two")
        seen[pair_id] = place
        said = str("" if word is None else word).strip().lower()
        if not said:
            continue
        if said not in WORDS:
            raise UserError(f"{place}: 'same' is '{said}'; write yes or no, or leave it empty where you cannot tell")
        same[places[pair_id]] = WORDS[said]
    if not same:
        raise UserError(f"{path}: no pair is labelled; fill the column 'same' with yes or no")
    return same


def _label_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(``file:line``, row) of a .csv or .jsonl file."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no such file; give the labels, a .csv or .jsonl file with 'id' and 'same'")
    if file.suffix in (".jsonl", ".json"):
        yield from json_lines(file)
        return
    if file.suffix != ".csv":
        raise UserError(f"{path}: unknown format '{file.suffix}'; give a .csv or .jsonl file with 'id' and 'same'")
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; save the table as CSV in UTF-8") from None
    first = text.split("\n", 1)[0]
    reader = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=";" if ";" in first and "," not in first else ",", strict=True
    )
    try:
        lacking = [name for name in ("id", "same") if name not in (reader.fieldnames or [])]
        if lacking:
            raise UserError(f"{path}:1: no column '{lacking[0]}'; the first line names the columns, id and same among them")
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row or row["same"] is None:
                raise UserError(f"{place}: the row has not as many fields as the first line has names")
            yield place, row
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not a table in CSV ({error})") from None


def _clustered_round(run: str) -> tuple[Artefact, Artefact]:
    """Samples and clusters of the last round that has them.

    Raises:
        UserError: there is no such round.
    """
    manifest = RunStore(run).manifest
    if not manifest:
        raise UserError(f"{run}: no run there (manifest.json is missing or empty); give a directory that ka2l run wrote")
    for name in sorted((name for name in manifest if name.endswith("/entropy")), reverse=True):
        samples = manifest.get(f"{name.rpartition('/')[0]}/samples")
        if samples is not None:
            return samples, manifest[name]
    raise UserError(f"{run}: no round has clustered answers yet; let the run go on until its first entropy")


def _reading(entropy: Artefact) -> Reading:
    """As the answers were read to be clustered; judges that know no normal form name none."""
    identity = entropy.inputs.get("entropy", {})
    how = identity.get("extract")
    return Reading(identity.get("normalize", READING.normalize), Extract(**how) if how else None)


def _rows(storage: Storage, columns: list[str]) -> Iterator[dict[str, Any]]:
    for file in storage.parquet_files():
        yield from storage.read_table(file, columns=columns).to_pylist()


def _read_drawn(run: str) -> _Drawn:
    storage = Storage(run).at("judge_check")
    if not storage.exists(DRAWN):
        raise UserError(f"{run}: no pairs were drawn; ka2l judge-check {run} draws them")
    try:
        return _DRAWN.validate_json(storage.read_bytes(DRAWN))
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"])
        raise UserError(
            f"{storage.url(DRAWN)}: damaged ({place + ': ' if place else ''}{fault['msg']}); "
            "restore it, or move the directory away and draw again"
        ) from None


def _table(pairs: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(pairs)
    return text.getvalue()


def _page(run: str, pairs: list[dict[str, Any]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ka2l_ray.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("judge_check.html.j2").render(run=run, pairs=pairs)


def _json(value: Any) -> str:
    """With null for what is not a number."""

    def plain(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: plain(each) for key, each in part.items()}
        return None if isinstance(part, float) and math.isnan(part) else part

    return canonical_json(plain(value))
