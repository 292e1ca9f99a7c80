"""The answer within a longer text, by example and on real models' solutions."""

from __future__ import annotations

import itertools
import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.extraction import Extract, extract, extract_accepted
from tests.unit.growth import grows_as_its_size

NUMBER, LETTER = Extract("last_number"), Extract("letter")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", "72"),
        ("10 - 3 = 7 apples.", "7"),
        ("18.00", "18"),
        ("$1,234.50 in all", "1234.5"),
        ("1,2,3", "3"),
        ("x=-5", "-5"),
        ("−5", "-5"),
        ("3-5", "5"),
        ("10 - 3", "3"),
        ("1/3", "1/3"),
        ("10²", "100"),
        ("1e-3", "0.001"),
        ("10^{-3}", "0.001"),
        ("5%.", "5"),
        (".5", "0.5"),
        ("-0", "0"),
        ("１２", "12"),
        ("A: 31", "31"),
        ("x^2", ""),
        ("0^-1", ""),
        ("12/25/2023", "2023"),
        ("COVID-19", "19"),
        ("B12", ""),
        ("None", ""),
        ("", ""),
    ],
)
def test_last_number(text: str, number: str) -> None:
    assert extract(text, NUMBER) == number


@pytest.mark.parametrize(
    "text", ["- 5", "—5", "x = —5", "= - 5", "Answer: - 5", "The answer is - 5", "-$5", "$-5", "-USD5", "Rs. -5"]
)
def test_a_minus_apart_from_its_number_is_a_sign_where_nothing_stands_before_it(text: str) -> None:
    assert extract(text, NUMBER) == "-5"
    assert extract("Apples:\n- 5", NUMBER) == "5"  # a list
    assert extract("three—5", NUMBER) == "5"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1 / 2", "0.5"),
        ("1/ 2", "0.5"),
        ("1 - 1/2", "0.5"),
        ("2 1/2", "2.5"),
        ("2-1/2 cups", "2.5"),
        ("2½ cups", "2.5"),
        ("2-½ cups", "2.5"),
        ("10-3/2", "1.5"),  # no mixed number
        ("\\frac{3}{4}", "0.75"),
        ("$\\frac{-1}{2}$", "-0.5"),
        ("-\\frac{1}{2}", "-0.5"),
        ("\\frac12", "0.5"),
        ("\\dfrac1{2}", "0.5"),
        ("2\\frac{1}{2}", "2.5"),
        ("\\frac{1.5}{2}", "0.75"),
        ("\\frac{3}{-4}", "-0.75"),
        ("(-3)/4", "-0.75"),
        ("3/-4", "-0.75"),
        ("x = (-3)/(-4)", "0.75"),
        ("f(3)/4", "4"),
    ],
)
def test_fractions(text: str, number: str) -> None:
    assert extract(text, NUMBER) == number


@pytest.mark.parametrize("times", ["x", "×", "*", "·", "\\times", "\\cdot"])
def test_a_power_of_ten_has_its_caret_and_no_product_is_computed(times: str) -> None:
    for power in (f"1.5 {times} 10^3", f"1.5 {times} 10^{{3}}", f"1.5{times}10³"):
        assert extract(power, NUMBER) == "1500"
    assert extract(f"1.5 {times} 10^-3", NUMBER) == "0.0015"
    for number in ("100", "1000", "102", "10"):
        assert extract(f"She needs 5 {times} {number} tiles", NUMBER) == number


@pytest.mark.parametrize("comma", [",", "\u00a0", "\u2009", "\u202f", "{,}", ",\\!", "\\,"])
def test_thousands_are_parted_in_many_ways(comma: str) -> None:
    assert extract(f"\\boxed{{1{comma}234}}", NUMBER) == "1234"
    assert extract(f"18{comma}000{comma}000 people", NUMBER) == "18000000"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("€ 5,50", "5.5"),
        ("5,50 €", "5.5"),
        ("1.234,56", "1234.56"),
        ("10,20,30", "30"),
        ("(10,20)", "20"),
        ("Rs. 1,50,000", "150000"),
        ("5,5", "5"),
    ],
)
def test_a_comma_with_two_digits_behind_it_is_a_decimal_one_where_it_can_be_nothing_else(text: str, number: str) -> None:
    assert extract(text, NUMBER) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12,5 %", "12.5"),
        ("12,5%", "12.5"),
        ("(12,5 %)", "12.5"),
        ("3,5 kg", "3.5"),
        ("12,345 kg", "12345"),
        ("1,2,3 %", "3"),
        ("5,5 apples", "5"),
    ],
)
def test_before_a_unit_one_digit_behind_a_comma_is_enough(text: str, number: str) -> None:
    assert extract(text, NUMBER) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1.000.000", "1000000"),
        ("Es sind 1.234.567.", "1234567"),
        ("1.234.567,89 €", "1234567.89"),
        ("人口は1.234.567", "1234567"),
        ("1 000 000", "1000000"),
        ("-1 234 567 euros", "-1234567"),
        ("1 234 567,89", "1234567.89"),
        ("10 000 people", "10000"),
        ("1.000", "1"),
        ("1 234", "234"),
        ("100 200 300 5", "5"),
    ],
)
def test_points_and_spaces_part_thousands_where_they_can_do_nothing_else(text: str, number: str) -> None:
    assert extract(text, NUMBER) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("答案是500。", "500"),
        ("所以总共有12个", "12"),
        ("合計500円です", "500"),
        ("คำตอบคือ12", "12"),
        ("총12개입니다", "12"),
        ("3加5等于8。", "8"),
        ("答案是-5。", "-5"),
        ("3加5等于-8", "-8"),
        ("答案是 - 5", "-5"),
        ("答案是(-3)/4", "-0.75"),
        ("10月-12月", "12"),
        ("10公里-20公里", "20"),
        ("1e3个", "1000"),
        ("価格はUSD500", "500"),
        ("维生素B12", ""),
    ],
)
def test_a_number_stands_right_behind_a_word_in_scripts_without_spaces(text: str, number: str) -> None:
    assert extract(text, NUMBER) == number


@pytest.mark.parametrize("currency", ["$", "€", "£", "₹", "Rs.", "Rs ", "USD", "USD ", "US$", "EUR"])
def test_currencies_are_no_part_of_a_number(currency: str) -> None:
    assert extract(f"It costs {currency}500.", NUMBER) == "500"


@pytest.mark.parametrize(
    "text", ["1" * 5000, "100," * 20000, "0." + "3" * 5000, "9" * 60 + "^99", "9" * 101, "1e999", "\\frac{" + "1" * 5000 + "}{2}"]
)
def test_what_has_more_than_a_hundred_digits_is_no_number(text: str) -> None:
    assert extract(text, NUMBER) in ("", "2")
    assert extract(f"7 and {text}", NUMBER) in ("7", "2")


B_IN_MANY_FORMS = r"""
B | b | (B) | [B] | {B} | B. | B! | B; | Ｂ | "B" | “B” | 'B' | `B` | *B* | **B** | **(B)** | - B | <b>B</b>
B) Paris | B: Paris | B - Paris | B — Paris | B.Paris | **B.** Paris | **B. Paris** | B. museum | B. E. coli | A: (B)
B because A is wrong | B, because A is wrong | B is correct | B is the correct answer | Option B: Paris
$\boxed{B}$ | \boxed{\mathrm{B}} | \boxed{\textbf{B}} | \(B\) | <answer>B</answer>
Answer B | Answer: B | **Answer:** B | Answer -> B | Answer = B | Answer - B | Final answer: Option B | Answer: "B"
The answer is B | The answer is “B” | The answer is: **B** | The answer is option (B) Paris | The answer's B
The answer is B because it is so | The answer is B in this case | The answer is B, I think | The answer is B, E. coli
The answer to this question is B. | The answer must be B | The answer, in this case, is clearly option B.
The correct option is B | The best choice would be B. | I think it's B | It must be (B). | I'd say B. | My guess is B.
I would go with option B. | I choose (B) heart failure | Sure! B is the best answer.
B (Paris) | Therefore, B. | Paris, so B. | Hence, option B. | The capital of France is **B. Paris**. | Paris is the capital. B.
Solution: B | Ans: B | Ans. B | The correct response is B | The correct one is B | Option B best describes this
The answer is therefore B | The answer is still B | The answer is, of course, B. | The answer to the question "Which?" is B
The correct answer is B. organs in the body. | The answer is B. humans | The answer is B. virus. | The answer is B. sodium ions
故选B | 选B | 答案选B | 因此选择B。 | 正确选项是B | 选项B正确 | 正解はBです | Bが正解です
정답은 B입니다 | B가 정답입니다
La respuesta correcta es la B | La opción correcta es B | La bonne réponse est la B
Die richtige Antwort ist Antwort B | Ответ — B
Правильный ответ: B | الإجابة هي B | सही उत्तर B है | Doğru cevap B | Poprawna odpowiedź to B | Đáp án là B
Rätt svar är B | Jawaban yang benar adalah B | A resposta correta é a B | A alternativa correta é a letra B
La risposta corretta è la B
答案：B | 答案是B，因为 | 正解：B | 정답: B | Antwort: B | Die Antwort ist B. | Réponse : B | La respuesta es B | Ответ: B
"""


def in_lines(texts: str) -> list[str]:
    return texts.strip().replace("\n", " | ").split(" | ")


LAST_LINES = ["B", "B. Paris", "B) Paris", "**B. Paris**", "**B**", "Option B: Paris"]


@pytest.mark.parametrize(
    "text",
    [*in_lines(B_IN_MANY_FORMS), "B\nbecause it is", "# Answer\n**B**", *(f"It is Paris.\n\n{line}" for line in LAST_LINES)],
)
def test_a_letter_is_found_whatever_stands_around(text: str) -> None:
    assert extract(text, LETTER) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "B. Paris\n\nExplanation: Option A is wrong.",
        "Answer: B\nExplanation: option A is false; option C is false.",
        "The answer is B. Option A is wrong because",
        "The answer is B, not A.",
        "**B**\n\nThe other options: option A is not, option D is not.",
        "(B) Paris. Choice A is wrong.",
        "Answer: B\nAnswer A is wrong.",
        "A is wrong, so the answer is B",
        "A is wrong. B is correct.",
        "Option B is correct. Option A, however, is wrong.",
        "(A) and (C) are wrong, so (B)",
        "A) Incorrect\nB) Correct",
        "- A: wrong\n- **B: right**\n- C: wrong",
        "A. Paris - wrong\nB. Rome - correct",
    ],
)
def test_a_letter_that_is_merely_discussed_is_none(text: str) -> None:
    assert extract(text, LETTER) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "The answer is B. If it were hot, the answer would be C.",
        "You might think the answer is C, but it is B.",
        "Some think the answer is C, but the answer is B.",
        "The answer is B. I don't think the answer is C.",
        "The answer is B. The answer could be C.",
        "It is not A, so the answer is B",
        "If we look closely, the answer is B",
        "I would say the answer is B",
    ],
)
def test_an_answer_that_is_denied_or_supposed_is_none(text: str) -> None:
    assert extract(text, LETTER) == "B"


NO_LETTER = """
A cat | I think so | I don't know | I, as a language model, cannot say | the answer is a cat | Answer: A cat
The answer is I am not sure | Vitamin D | Hepatitis B | T cells | The answer is B cells | X-ray | The answer is X-ray
C++ | The answer is C++ | C# | The answer is C# | K+ | A- | Dr. No | e.g. Paris | U.S.A. | The answer is A's
The answer is E. coli | The answer is C. difficile. | The answer is H. pylori infection | The answer is S. aureus
Option A is wrong | Options A and C are wrong | Option A, option B and option C are wrong. | Neither A nor B is correct.
The answer is a US senator | The "A" line was not created in 1955. | The answer is not A | The wrong answer is A
The answer is A or B | E. coli | The answer is B. subtilis | The answer is C. elegans. | The answer could be B.
I don't think the answer is B. | If the answer is B, then it is so. | 不选B | 选项A错误 | A (very) nice city
(A) x (B) y (C) z | Answer choices: A) x B) y | The options are (A) x, (B) y.
"""


@pytest.mark.parametrize(
    "text",
    [*in_lines(NO_LETTER), "", "A) x\nB) y\nC) z", "A. Paris\nB. Rome", "They are:\n\nA) x\nB) y\nC) z", "A) True\nB) False"],
)
def test_what_is_no_letter_of_an_answer(text: str) -> None:
    assert extract(text, LETTER) == ""


def test_an_answer_behind_the_options_repeated_is_found() -> None:
    assert extract("(A) x (B) y (C) z. So it must be (B).", LETTER) == "B"
    assert extract("A) x\nB) y\nC) z\n\nAnswer: B", LETTER) == "B"
    assert extract("The answer is A) x. B) y is wrong.", LETTER) == "A"


@pytest.mark.parametrize("letter", string.ascii_uppercase)
def test_letters_go_as_far_as_options_do(letter: str) -> None:
    for text in ("{}", "({})", "{}. Paris", "The answer is {}.", "**Answer:** {}"):
        assert extract(text.format(letter), LETTER) == letter


HARD = [
    "answer ",
    "answer is ",
    "the answer is the ",
    "(",
    "* ",
    '"',
    "option A, ",
    "A is the ",
    "A) x ",
    "\\boxed{",
    "<answer",
    " ",
]
HARD += ["1", "1 ", "1/", "1 / ", "1,", "1.", "11,", "1,1", "100,", "= ", "- ", "1-", "\\frac{", "\\frac1", "x10^", "USD", "\n"]
HARD += ["100 ", "100.", "(1)/", "1/-", "是-", "月", "1月", "1,5 ", "选", "**B. ", "you might think ", "A: right\n"]


@pytest.mark.parametrize("how", [NUMBER, LETTER])
@pytest.mark.parametrize("part", HARD)
def test_time_is_linear_in_the_text(part: str, how: Extract) -> None:
    tries = itertools.count()

    def read(times: int) -> None:
        extract(f"The answer is B. {part * times}{next(tries)}", how)  # another text each time: answers are kept

    assert grows_as_its_size(read, 2_000, 40_000)


def test_a_pattern_gives_its_last_match_or_the_first_group_of_it() -> None:
    assert extract("Final: Rome. Final: Paris.", Extract("regex", r"Final: (\w+)")) == "Paris"
    assert extract("1931 or 1932", Extract("regex", r"\d{4}")) == "1932"
    assert extract("Rome", Extract("regex", r"Final: (\w+)")) == ""


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"\d*", "The answer is 42.", "42"),
        (r"[A-D]?", "The answer is B.", "B"),
        (r"(?m)^(?:Answer: )?(.*)$", "x\nAnswer: Paris\n", "Paris"),
        (r"Answer: ([A-D])|\(([A-D])\)", "Answer: B or (C)", "C"),
        (r"(no )?Rome", "Rome", "Rome"),
        (r"[A-D]?", "42", ""),
    ],
)
def test_of_a_pattern_the_last_match_counts_that_says_something(pattern: str, text: str, found: str) -> None:
    assert extract(text, Extract("regex", pattern)) == found


def test_where_a_letter_is_accepted_no_text_is() -> None:
    assert extract_accepted(["B", "E. coli", "B. E. coli"], LETTER) == ["B"]
    assert extract_accepted(["a", "(C)", "heart"], LETTER) == ["A", "C"]
    assert extract_accepted(["AB", "B. heart"], LETTER) == ["AB", "B"]


def test_all_of_a_text_without_a_way_to_extract() -> None:
    assert extract("The answer is B.", None) == "The answer is B."


def test_an_accepted_answer_in_which_nothing_is_found_stays() -> None:
    assert extract_accepted(["#### 7", "seven"], NUMBER) == ["7", "seven"]


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "so it is {}.", "$$ {} $$", "{}.0", "({})"]))
def test_a_number_is_found_whatever_stands_around(number: int, around: str) -> None:
    assert extract(around.format(number), NUMBER) == str(number)


@given(st.text(max_size=40) | st.text("0123456789.,/^-+ex×{}\\frac $ABIisanswer()\n", max_size=60))
def test_what_was_extracted_is_extracted_again(text: str) -> None:
    for how in (NUMBER, LETTER):
        assert extract(extract(text, how), how) == extract(text, how)


@pytest.mark.shared
def test_last_numbers_judge_real_solutions_as_their_source_does(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "gen_gsm8k_gpt3.jsonl").read_text().splitlines()]
    for row in rows:
        accepted = extract_accepted(row["answers"], NUMBER)
        assert [extract(text, NUMBER) in accepted for text in row["generations"]] == row["correct"]
