"""Which answers decline to answer, on strings and against marks made by hand; what a question's answers come to."""

# ruff: noqa: RUF001 (letters of other alphabets look like ours)
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ka2l_ray.semantics.abstention import abstains, expanded, without_answer, without_answer_decided
from ka2l_ray.semantics.abstention_patterns import TONGUES
from tests.unit.growth import grows_as_its_size

MARKS = Path(__file__).with_name("abstention_marks.jsonl")
DATA = Path(__file__).parents[4] / "shared/data"


@pytest.mark.parametrize(
    "answer",
    [
        *("The Who", "Guess Who", "Nobody", "No one", "None", "Nothing", "No", "Sorry", "Mr. Nobody", "The Unknown Soldier"),
        *('"I Don\'t Know" by Ozzy Osbourne', "I Don't Know How to Love Him", 'The song is "I Don\'t Know".', "I Don't Know"),
        *("Don't Know Why", "I Can't Tell You Why", "You Don't Know Jack", "God Only Knows", "No Country for Old Men"),
        *("I'm not sure, but I think it is Paris.", "Paris, though I cannot confirm this.", "Paris (I am not sure)."),
        *("I don't know exactly, but it was 1950.", "[1903] (This is a guess, as the actual year is not provided.)"),
        *(
            "I don't know, maybe Paris?",
            "I'm not certain, perhaps Paris.",
            "I don't know exactly, around 1950",
            "I don't know, but Paris.",
        ),
        *("Possibly Paris. I don't know.", "He is credited as the drummer, though he was not officially listed as a member."),
        *("There is no such film.", "He did not attend a school.", "Lack of oxygen", "The award was not given out in 2014."),
        *("Unknown Pleasures", "It is not known for its beaches.", "Uncertainty principle", "Data", ""),
    ],
)
def test_a_name_a_guess_or_a_denial_is_an_answer(answer: str) -> None:
    assert not abstains(answer)


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "I don't know",
            "I don\u2019t know.",
            "I DON'T KNOW",
            "i dont know",
            "**I don't know**",
            '"I don\'t know."',
            "idk",
            "N/A",
        ),
        *("Unknown.", "No idea", "I honestly have no idea.", "I'm not sure.", "Answer: I don't know", "Nobody knows."),
        *("I'm sorry, but as an AI language model, I don't have access to that information.", "I can't help with that."),
        *("I couldn't find any information about this.", "I am unable to verify the date.", "It is unclear who wrote it."),
        *("The exact date is not provided in the given information.", "[The answer cannot be determined.]", "Not available"),
        *("There is not enough information to answer.", "The date is unknown.", "I would need more context to answer."),
        *("I'm not aware of this band. However, if you could provide more context, I may be able to help.", "Sorry, no idea."),
        *("He was a chemist. Unfortunately, I do not have information on his school.", "St. Jude's date cannot be determined."),
        *("There isn't enough information to answer.", "I have absolutely no idea", "There is no way to know."),
        *(
            "Good question. I'm not sure.",
            "Oh, I don't know",
            "Um... I'm not sure",
            "A: I don't know",
            "I've never heard of that",
        ),
        *(
            "Désolé, je ne sais pas.",
            "Lo siento, no lo sé",
            "Извините, я не знаю.",
            "죄송합니다. 모르겠습니다.",
            "Das weiß ich leider nicht",
        ),
        *("As an AI language model, I do not have access to real-time data.", "I do not possess that information"),
        *("我不知道。", "わかりません", "Je ne sais pas.", "Ich weiß es nicht.", "No lo sé.", "Я не знаю."),
    ],
)
def test_who_declines_abstains(answer: str) -> None:
    assert abstains(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I do not have access to real-time information. Therefore, I cannot answer this question.",
        "I don't have real-time data, so I cannot provide an answer.",
        "As of my last update, I cannot confirm the winner.",
        "Thus, I am unable to answer.",
        "As such, I cannot say.",
        "Hence I don't know.",
        "As a result, I can't provide an answer.",
        "At this time, I don't have that information.",
        "As of 2021, I do not have information on this.",
        "I do not have up-to-date information.",
        "I cannot say with 100% certainty.",
        "I cannot infer the answer.",
        "I cannot comment on that.",
        "I can't accurately determine it.",
        "I do not have access to real-time data, and I cannot browse the internet, therefore I can't say.",
        "I won't answer that",
        "I refuse to answer",
        "I haven't heard of it",
        "I dunno",
        "I do n't know",
        "I ca n't say",
        "No idea, sorry!",
        "Age unknown",
        "The question is unanswerable",
        "I lack knowledge of this",
        "That is outside my knowledge",
        "That is beyond my knowledge.",
    ],
)
def test_who_declines_abstains_however_it_is_put(answer: str) -> None:
    assert abstains(answer)


@pytest.mark.parametrize(
    ("language", "answers"),
    [
        (
            "German",
            [
                "Unbekannt",
                "Das kann ich leider nicht beantworten.",
                "Ich kann diese Frage nicht beantworten.",
                "Es tut mir leid, aber ich weiß es nicht.",
                "Dazu liegen mir keine Informationen vor.",
                "Keine Ahnung.",
            ],
        ),
        (
            "French",
            [
                "Inconnu",
                "Je n'ai pas d'informations à ce sujet.",
                "Je ne peux pas répondre à cette question.",
                "Je suis désolé, mais je ne sais pas.",
                "Aucune idée",
            ],
        ),
        (
            "Spanish",
            [
                "Desconocido",
                "No tengo información sobre eso.",
                "No puedo responder a esa pregunta.",
                "Lo siento, pero no puedo encontrar la respuesta.",
                "No sé.",
            ],
        ),
        (
            "Portuguese",
            [
                "Desconhecido",
                "Não tenho informações sobre isso.",
                "Não posso responder a essa pergunta.",
                "Desculpe, não sei.",
                "Não faço ideia.",
            ],
        ),
        (
            "Italian",
            [
                "Sconosciuto",
                "Non ho informazioni su questo.",
                "Non posso rispondere a questa domanda.",
                "Mi dispiace, ma non lo so.",
                "Non ne ho idea.",
            ],
        ),
        (
            "Dutch",
            [
                "Onbekend",
                "Ik heb geen informatie hierover.",
                "Ik kan deze vraag niet beantwoorden.",
                "Sorry, ik weet het niet.",
                "Dat kan ik niet zeggen.",
            ],
        ),
        (
            "Swedish",
            [
                "Okänt",
                "Jag har ingen information om det.",
                "Jag kan inte svara på den frågan.",
                "Tyvärr vet jag inte.",
                "Ingen aning",
            ],
        ),
        (
            "Polish",
            [
                "Nieznany",
                "Nie mam informacji na ten temat.",
                "Nie mogę odpowiedzieć na to pytanie.",
                "Niestety nie wiem.",
                "Brak informacji",
            ],
        ),
        (
            "Turkish",
            [
                "Bilinmiyor",
                "Bu konuda bilgim yok.",
                "Bu soruyu cevaplayamam.",
                "Üzgünüm, bilmiyorum.",
                "Bu soruya cevap veremem.",
            ],
        ),
        (
            "Russian",
            [
                "Неизвестно",
                "У меня нет информации об этом.",
                "Я не могу ответить на этот вопрос.",
                "К сожалению, я не знаю.",
                "Понятия не имею.",
            ],
        ),
        (
            "Chinese",
            [
                "未知",
                "不详",
                "我没有相关信息。",
                "我无法回答这个问题。",
                "抱歉，我不知道。",
                "我沒有相關資訊",
                "很抱歉，我無法回答這個問題。",
            ],
        ),
        (
            "Japanese",
            [
                "不明",
                "情報がありません。",
                "お答えできません。",
                "申し訳ありませんが、わかりません。",
                "その情報を持っていません。",
            ],
        ),
        ("Korean", ["미상", "알 수 없음", "정보가 없습니다.", "대답할 수 없습니다.", "죄송하지만 모르겠습니다."]),
        ("Arabic", ["مجهول", "غير معروف", "ليس لدي معلومات عن ذلك.", "لا أستطيع الإجابة على هذا السؤال.", "عذراً، لا أعلم."]),
        ("Hindi", ["अज्ञात", "मेरे पास इसकी जानकारी नहीं है।", "मैं इस प्रश्न का उत्तर नहीं दे सकता।", "क्षमा करें, मुझे इसकी जानकारी नहीं है।"]),
        (
            "Vietnamese",
            ["Không rõ", "Tôi không có thông tin về điều này.", "Tôi không thể trả lời câu hỏi này.", "Xin lỗi, tôi không biết."],
        ),
        (
            "Indonesian",
            [
                "Tidak diketahui",
                "Saya tidak memiliki informasi tentang itu.",
                "Saya tidak dapat menjawab pertanyaan ini.",
                "Maaf, saya tidak tahu.",
            ],
        ),
        ("Thai", ["ไม่ทราบ", "ไม่มีข้อมูล", "ไม่สามารถตอบคำถามนี้ได้", "ขออภัย ฉันไม่ทราบคำตอบ"]),
    ],
)
def test_who_declines_in_another_tongue_abstains(language: str, answers: list[str]) -> None:
    assert language in TONGUES
    assert [answer for answer in answers if not abstains(answer)] == []


@pytest.mark.parametrize(
    "answer",
    [
        "Je ne sais pas, mais je pense que c'est Paris.",
        "No sé, quizás París",
        "Ich weiß es nicht, vielleicht Paris.",
        "我不知道，可能是巴黎。",
        "La Desconocida de Sena",
        "你不知道的事",
        "No se puede vivir sin amor",
        "Je ne regrette rien",
    ],
)
def test_a_guess_or_a_name_in_another_tongue_is_an_answer(answer: str) -> None:
    assert not abstains(answer)


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("Dark matter, whose nature is unknown", "What holds galaxies together?"),
        ("The Zodiac Killer, whose identity is unknown.", "Who killed in San Francisco?"),
        (
            "'Ten Green Bottles' is a traditional English nursery rhyme. However, its exact origin is unknown.",
            "What is Ten Green Bottles?",
        ),
        (
            "'Ten Green Bottles' is a traditional English nursery rhyme; its exact origin is unknown",
            "Which song counts bottles on a wall?",
        ),
        ("You should consult a doctor", "What should one do with chest pain?"),
        ("You need to check your blood sugar", "What do I need to do as a diabetic?"),
        ("A hypothesis must be verified by experiments", "What must be done with a hypothesis?"),
        ("A hypothesis must be verified by experiments", ""),
        ("I don't know, Paris?", ""),
        ("Not sure. 1950?", ""),
        ("Not sure. 1950?", "When was it?"),
        ("I don't know, Paris?", "What is the capital of France?"),
        ("(C) Not enough information", ""),
        ("C. Cannot be determined", ""),
        ("B) Unknown", "q"),
        ("The answer is (C) Cannot be determined", ""),
        ("C: Cannot be determined", ""),
        ("Paris, but I don't know much else, maybe Lyon", ""),
        ("Address Unknown", ""),
        ("Destination Unknown", "Which Christie novel..."),
        ("The Great Unknown", ""),
        ("It was Paris, so I believe.", ""),
        ("Portugal, where the exact number is unknown", "Which country has most?"),
        ("Therefore, the answer is Paris.", ""),
        ("She refused to answer.", ""),
    ],
)
def test_what_is_said_beside_the_answer_or_advised_or_chosen_or_wondered_takes_nothing_back(answer: str, question: str) -> None:
    assert not abstains(answer, question)


def test_who_is_sent_elsewhere_has_no_answer_unless_it_was_advice_that_was_sought() -> None:
    assert abstains("You should consult the official website.", "Who won the cup?")
    assert not abstains("You should consult a doctor.", "What should I do when my chest hurts?")


def test_a_number_that_was_asked_for_and_not_told_is_taken_back_without_a_contrast() -> None:
    assert abstains("Hawaii; its capital is Honolulu. The size is unknown", "How large is the island state?")
    assert not abstains("28,000 km2. The size of its capital is unknown", "How large is the island state?")


def test_what_asks_back_is_no_guess() -> None:
    assert abstains("I'm not sure, could you clarify?")
    assert abstains("I don't know, sorry?")


@pytest.mark.parametrize(
    "unit",
    [
        "I don't know. ",
        "He was a botanist. ",
        "so ",
        "well, given ",
        " (",
        "!",
        "information is ",
        ", whose x",
        "as of x, ",
        "不知道",
    ],
)
def test_reading_an_answer_takes_time_in_proportion_to_its_length(unit: str) -> None:
    question = "In what year was the man born?"

    def work(size: int) -> None:
        abstains("I don't know. " + unit * (size // len(unit)) + "a", question)

    assert grows_as_its_size(work, 4_000, 32_000)


def test_what_is_told_instead_of_the_number_asked_for_is_no_answer() -> None:
    told = "I couldn't find any information about the year. However, I found that {}."
    assert abstains(told.format("he was a botanist"), "In what year was he born?")
    assert not abstains(told.format("he was born in 1801"), "In what year was he born?")
    assert not abstains(told.format("he was a botanist"), "What was his profession?")


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("[answer].", ""),
        ('[answer]" where [answer] is your complete answer.', ""),
        ("The secret identity is [insert name here].", ""),
        ("[Day], [Month], [Year]", "When was it?"),
        (
            "[The surname of the individual who won the prize in 1958]",
            "What is the surname of the individual who won the prize in 1958?",
        ),
        ("[The population of Darrud would need to be looked up.]", "What was the population of Darrud?"),
    ],
)
def test_an_empty_place_is_no_answer(answer: str, question: str) -> None:
    assert abstains(answer, question)


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("[Paris]", "What is the capital of France?"),
        ("[Answer]: Paris", "What is the capital of France?"),
        ("<answer>Paris</answer>", "What is the capital of France?"),
        ("[The High School of the Holy Name]", "Which high school did she attend?"),
        ("The list is [1, 2, 3].", "What does it print?"),
    ],
)
def test_brackets_may_hold_an_answer(answer: str, question: str) -> None:
    assert not abstains(answer, question)


def test_what_a_model_says_of_itself_declines_only_where_nothing_stands_behind_it() -> None:
    disclaimer = "As an AI language model, I don't have access to the latest updates. However, {}"
    assert not abstains(
        disclaimer.format("as of 2021, the co-hosts were Adrienne Houghton and Loni Love."), "Who are the co-hosts?"
    )
    assert abstains(disclaimer.format("you can check the show's website."), "Who are the co-hosts?")
    assert abstains(disclaimer.format("I can suggest that you look at the show's website."), "Who are the co-hosts?")


def test_what_is_told_behind_an_abstention_answers_where_it_is_what_was_asked_for() -> None:
    question = "Which mycologist circumscribed the genus Lillicoa?"
    told = "I'm not aware of a mycologist named Lillicoa. However, I found that {}"
    assert abstains(told.format("Lillicoa is a genus of fungi."), question)
    assert not abstains(told.format("the genus Lillicoa was circumscribed by Desjardin."), question)
    assert not abstains(told.format("Lillicoa is a genus of fungi. It was circumscribed by Desjardin."), question)
    assert abstains(
        told.format("Lillicoa is a genus. Could you say more of the genus Lillicoa and who circumscribed it?"), question
    )
    born = "I couldn't find any James Young. However, I found information on a James Young from Ohio. "
    assert abstains(born, "In what year was James Young of Ohio born?")
    assert not abstains(born + "James Young was born in 1838.", "In what year was James Young of Ohio born?")


def test_patterns_of_a_configuration_stand_beside_or_instead_of_the_defaults() -> None:
    assert not abstains("No comment.")
    assert abstains("No comment.", patterns=expanded(["default", "^no comment$"]))
    assert abstains("NO COMMENT", patterns=expanded(["^No comment$"]))
    assert not abstains("I don't know", patterns=expanded(["^no comment$"]))
    assert not abstains("I don't know", patterns=expanded([]))
    each_by_itself = expanded(["default", "(?i)^no comment", r"(?P<x>\w+) (?P=x)", "(?P<x>pass)$"])
    said = [abstains(each, patterns=each_by_itself) for each in ("No comment", "mum mum", "pass", "Paris")]
    assert said == [True, True, True, False]


def told(file: str) -> dict[tuple[str, str, int | str], tuple[str, str]]:
    """(question, answer) by id, field and place, or by id, field and model where many models answered."""
    answers: dict[tuple[str, str, int | str], tuple[str, str]] = {}
    for line in (DATA / f"{file}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for field, asked in (("generations", None), ("paraphrase_generations", row.get("question_paraphrases"))):
            for index, answer in enumerate(row.get(field, ())):
                answers[row["id"], field, index] = (asked[index] if asked else row["question"], answer)
        for model, answer in zip(row.get("models", ()), row["generations"], strict=False):
            answers[row["id"], "generations", model] = (row["question"], answer)
    return answers


def marked() -> dict[str, list[tuple[bool, bool, str]]]:
    """(marked, found, answer) by set. Of SimpleQA, the first was read before any pattern was written, each later one when the
    patterns stood, measured once, and tuned on afterwards. Of other sets, "mixed" was tuned on, "mixed, held out" never
    (docs/labels.md has the figures)."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there: the licence of most answers is not stated, so only their marks are kept here")
    marks = [json.loads(line) for line in MARKS.read_text(encoding="utf-8").splitlines()]
    files = {file: told(file) for file in {mark.get("file", "gen_simpleqa_15models") for mark in marks}}
    sets: dict[str, list[tuple[bool, bool, str]]] = {}
    for mark in marks:
        place = (mark["id"], mark.get("field", "generations"), mark["index"] if "index" in mark else mark["model"])
        question, answer = files[mark.get("file", "gen_simpleqa_15models")][place]
        sets.setdefault(mark["set"], []).append((mark["abstains"], abstains(answer, question), answer))
    return sets


def assert_found(rows: list[tuple[bool, bool, str]], precision: float, recall: float) -> None:
    right = sum(mark and found for mark, found, _ in rows)
    assert right / sum(found for _, found, _ in rows) >= precision, [text for mark, found, text in rows if found and not mark]
    assert right / sum(mark for mark, _, _ in rows) >= recall, [text for mark, found, text in rows if mark and not found]


def test_precision_and_recall_on_marked_answers() -> None:
    sets = marked()
    mixed, held_out = sets.pop("mixed"), sets.pop("mixed, held out")
    assert [len(rows) for rows in sets.values()] == [200, 150, 150, 120, 250, 200]
    assert [len(mixed), len(held_out)] == [150, 150]
    assert_found(sets["first"], 0.95, 0.95)
    assert_found([row for each in sets.values() for row in each], 0.95, 0.95)
    assert_found(mixed, 0.94, 0.95)
    assert_found(held_out, 0.85, 0.85)


@pytest.mark.parametrize(
    ("ids", "declines", "without"),
    [
        ([0] * 10, [True] * 10, True),  # "I don't know", ten times
        ([0] * 10, [False] * 10, False),
        ([0] * 9 + [1], [False] * 9 + [True], False),
        ([0] * 5 + [1] * 5, [False] * 5 + [True] * 5, True),
        ([0, 0, 0, 0, 1, 2, 3, 4, 5, 6], [False] * 4 + [True] * 6, True),  # six wordings of one abstention
        ([0, 0, 0, 1, 1, 1, 2, 2, 2, 2], [False] * 6 + [True] * 4, True),
        ([0] * 10, [True] * 5 + [False] * 5, True),  # the judge knows other wordings of it than the patterns do
        ([0] * 10, [True] * 4 + [False] * 6, False),
        (list(range(10)), [False] * 10, False),
    ],
)
def test_a_question_goes_without_an_answer_where_no_meaning_outnumbers_silence(
    ids: list[int], declines: list[bool], without: bool
) -> None:
    assert without_answer(np.array(ids), np.array(declines)) == without
    assert without_answer(np.array([ids, ids]), np.array([declines, declines])).tolist() == [without] * 2


def test_a_label_is_decided_only_where_answers_to_come_cannot_make_or_break_an_abstention() -> None:
    assert without_answer_decided([0] * 9, [False] * 9, 10)
    assert without_answer_decided([0] * 9, [True] * 9, 10)
    assert not without_answer_decided([0] * 9, [True] * 4 + [False] * 5, 10)  # the tenth may tip it
