"""A judge for English is refused on questions that clearly are in another language, and on no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ka2l_ray.config import EntropyConfig, EvaluationConfig
from ka2l_ray.errors import UserError
from ka2l_ray.semantics.language import check_language, foreign, is_english
from ka2l_ray.world.facts import World

SHARED = Path(__file__).parents[4] / "shared/data"
QUESTIONS = {
    "Chinese or Japanese": ["法国的首都是哪里?", "谁写了《红楼梦》?", "水的化学式是什么?"],
    "Japanese": ["フランスの首都はどこですか?", "『坊っちゃん』を書いたのは誰ですか?"],
    "Korean": ["프랑스의 수도는 어디입니까?", "물의 화학식은 무엇입니까?"],
    "a language in Cyrillic script": ["Какой город является столицей Франции?", "Кто написал «Войну и мир»?"],
    "a language in Arabic script": ["ما هي عاصمة فرنسا؟", "من كتب ألف ليلة وليلة؟"],
    "Spanish": ["¿Cuál es la capital de Francia y en qué año fue fundada la ciudad?", "¿Quién escribió El Quijote de la Mancha?"]
    * 4,
    "French": ["Quelle est la capitale de la France et quand est-elle devenue la capitale du pays?", "Qui est le roi des Belges?"]
    * 4,
    "German": ["Wie heißt die Hauptstadt von Frankreich und wann wurde sie gegründet?", "Wer hat den Faust geschrieben?"] * 4,
    "Czech": ["Kdo napsal román Válka s mloky a ve kterém roce to bylo?", "Jaké je hlavní město Francie a kolik má obyvatel?"]
    * 4,
    "Hungarian": ["Ki írta az Egri csillagok című regényt és mikor?", "Mi a fővárosa annak az országnak, és hol van?"] * 4,
    "Romanian": ["Care este capitala Franței și în ce an a fost fondată?", "Cine a scris o carte care este din acest secol?"] * 4,
    "Finnish": ["Kuka on kirjoittanut kirjan ja missä hän asui?", "Mikä on Ranskan pääkaupunki ja mitä siellä on?"] * 4,
}


@pytest.mark.parametrize("language", QUESTIONS)
def test_a_language_is_named(language: str) -> None:
    assert foreign(QUESTIONS[language]) == language


def test_english_maths_and_mixed_questions_are_not_foreign(world: World) -> None:
    assert foreign(row["question"] for row in world.rows("pool")) is None
    assert foreign(["3 + 5 = ?", "12 / 4 = ?"] * 50) is None
    assert foreign([]) is None
    assert foreign(["Who wrote La vida es sueño?", "What does 'où est la gare' mean?", "Where is São Paulo?"] * 20) is None
    assert foreign(["What is the capital of 中国?", "Who is 毛泽东?"]) is None


def test_no_english_file_of_real_questions_is_foreign() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there")
    read = 0
    for path in SHARED.glob("*.jsonl"):
        with path.open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line, _ in zip(lines, range(200), strict=False)]
        questions = [row["question"] for row in rows if isinstance(row.get("question"), str)]
        read += bool(questions)
        assert foreign(questions) is None, path.name
        assert foreign(questions[:10]) is None, path.name
    assert read > 30


@pytest.mark.parametrize(
    "path",
    [
        *(
            "bundled:judge",
            "microsoft/deberta-large-mnli",
            "/models/deberta-v3-base-mnli-fever-anli",
            "FacebookAI/roberta-large-mnli",
        ),
        *("sentence-transformers/all-mpnet-base-v2", "models/all-minilm-l6-v2/", "cross-encoder/stsb-roberta-base"),
    ],
)
def test_models_that_read_english_only(path: str) -> None:
    assert is_english(path)


@pytest.mark.parametrize("path", ["MoritzLaurer/mDeBERTa-v3-base-mnli-xnli", "joeddav/xlm-roberta-large-xnli", "BAAI/bge-m3"])
def test_models_that_read_more_or_of_which_nothing_is_known(path: str) -> None:
    assert not is_english(path)


@pytest.mark.parametrize(
    ("card", "english"),
    [
        ("---\nlanguage: en\n---\n# A judge", True),
        ("---\nlanguage:\n- en\n---\n", True),
        ("---\nlanguage:\n- en\n- zh\n---\n", False),
        ("# A judge, language: en", False),
        ("---\n: [\n---\n", False),
    ],
)
def test_a_model_s_card_says_what_it_reads(card: str, english: bool, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    assert is_english(str(tmp_path)) is english


def test_an_english_judge_is_refused_by_name_and_others_are_not() -> None:
    chinese = QUESTIONS["Chinese or Japanese"]
    line = (
        r"entropy.nli_model: microsoft/deberta-large-mnli reads English, and the questions of pool.jsonl are in Chinese or "
        r"Japanese; give a model that reads it, or set entropy.judge to exact or llm"
    )
    with pytest.raises(UserError, match=line):
        check_language(EntropyConfig(), "entropy", chinese, "pool.jsonl")
    with pytest.raises(UserError, match=r"evaluation.encoder: sentence-transformers/all-mpnet-base-v2 reads English"):
        check_language(EvaluationConfig(judge="embedding"), "evaluation", chinese, "test.jsonl")
    for settings in (
        EntropyConfig(judge="exact"),
        EntropyConfig(judge="contains"),
        EntropyConfig(judge="llm", llm_model="m"),
        EntropyConfig(nli_model="MoritzLaurer/mDeBERTa-v3-base-mnli-xnli"),
    ):
        check_language(settings, "entropy", chinese, "pool.jsonl")
    check_language(EntropyConfig(), "entropy", ["What is the capital of France?"] * 50, "pool.jsonl")
