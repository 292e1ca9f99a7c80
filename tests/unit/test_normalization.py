"""The same answer, the same question: by examples in many scripts, and by what must hold of any text."""

from __future__ import annotations

import itertools
import unicodedata
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ka2l_ray.normalization import Form, normalize_answer, normalize_question
from tests.unit.growth import grows_as_its_size

SAME = [
    ("巴黎。", "巴黎"),
    ("café", "cafe\u0301"),
    ("１９６９", "1969"),
    ("٣", "3"),
    ("rock ’n’ roll", "rock 'n' roll"),
    ("“The Beatles”", "Beatles"),
    ("Straße", "STRASSE"),
    ("Paris\u200b", "\u200fParis\ufeff"),
    ("「東京」", "東京"),
    ("巴黎、伦敦", "巴黎，伦敦"),
    ("¿Qué?", "qué"),
    ("The Eiffel  Tower!", "an Eiffel Tower"),
    ("**Paris**", "`Paris`."),
    ("_Paris_", "Paris"),
    ("- Paris", "Paris"),
    ("U.S.A", "USA."),
    ("J. K. Rowling", "J.K. Rowling"),
    ("10 a.m.", "10 AM"),
    ("Washington, D.C.", "Washington DC"),
    ("O’Brien", "O'Brien"),
    ("well-known", "well known"),
    ("COVID-19", "COVID 19"),
    ("Paris — the city", "Paris, city"),
    ("Iron(III)", "iron (III)"),
    ("Simon & Garfunkel", "Simon and Garfunkel"),
    ("Coca-Cola™", "Coca Cola"),
    ("AC / DC", "AC/DC"),
    ("X-Factor", "X Factor"),
    ("5 €", "5€"),
    ("1,000", "1000"),
    ("1\u202f000 km", "1,000 km"),
    ("$1,234.50", "$ 1234.50"),
    (".5", "0.5"),
    ("+5", "5"),
    ("−5", "-5"),
    ("(–5)", "- 5"),
    ("1914 – 1918", "1914—1918"),
    ("½", "1/2"),
    ("2½", "2 1/2"),
    ("5\u00a0%.", "５％"),
    ("H₂O", "H2O"),
    ("Ca²⁺", "Ca2+"),
    ("²³⁵U", "235U"),
    ("10⁻²", "10^-2"),
    ("C♯", "C#"),
    ("Ｃ＋＋.", "C++"),
    ("Paris (France)", "Paris, France"),
    ("Paris (France) - capital", "Paris, France, capital"),
    ("n(n+1)/2", "n (n + 1) / 2"),
    ("2 - (3 + 4)", "2-(3+4)"),
    ("x * 2", "x*2"),
    ("$5 - $3", "$5-$3"),
    ("* Paris\n* London", "Paris, London"),
    ('It is **"Carpe Diem."**', "It is Carpe Diem"),
    ("M*A*S*H", "m * a * s * h"),
    ("x != 5", "x≠5"),
    ("Yahoo!", "Yahoo"),
    ("Yes!!", "yes"),
    ("NO₃⁻", "NO3-"),
    ("NH₄⁺", "NH4+"),
    ("HCO₃⁻", "HCO3-"),
    ("O₂⁻", "O2-"),
    ("SO₄²⁻", "SO4^2-"),
    ("1980's", "1980s"),
    ("50’s", "'50s"),
    ("Ph.D.", "PhD"),
    ("B.Sc.", "BSc"),
    ("P.R. China", "PR China"),
    ("P.R.China", "PR China"),
    ("J K Rowling", "J. K. Rowling"),
    ("b b king", "B.B. King"),
    ("I M Pei", "I. M. Pei"),
    ("A J Cronin", "A.J. Cronin"),
    ("A B AB O", "A, B, AB, O"),
    ("R&B", "R and B"),
    ("AT&T", "AT & T"),
    ("2 : 3", "2:3"),
    ("5′ 10″", "5′10″"),
    ("St. Edward′s Crown", "St Edward's crown"),
    ("a major city", "major city"),
    ("A-flat", "A flat"),
    ("pre- and postwar", "pre and postwar"),
    ("दिल्ली-मुंबई", "दिल्ली मुंबई"),
    ("दिन!", "दिन"),
    ('"It was 1945!"', "It was 1945"),
    ("**Vitamin D!**", "Vitamin D"),
    ("(It was 1945!)", "It was 1945"),
    ("- a wooden ruler", "a wooden ruler"),
    ("- J. K. Rowling", "J. K. Rowling"),
    ("- X-ray", "X-ray"),
    ("- **C**\n– D", "C, D"),
    ("F = -kx", "F = −kx"),
    ("F = - kx", "F = −kx"),
    ("ad - bc", "ad − bc"),
    ("-mgh", "−mgh"),
    ("-ase", "ase"),
    ("-Paris", "Paris"),
    ("(AFP) - in Paris", "AFP in Paris"),
    ("--10 mV", "-10 mV"),
    ("“—5”", "-5"),
    ("(4, 1)", "(4,1)"),
    ("(4, −1)", "(4,-1)"),
    ("(−∞, 5]", "(-∞,5]"),
    ("1, 2, 3", "1,2,3"),
    ("(255,255,255)", "(255, 255, 255)"),
    ("(1,234 km)", "1234 km"),
    ("İstanbul", "istanbul"),
    ("צה״ל", 'צה"ל'),
    ("צ׳ק", "צ'ק"),
    ("محمـــد", "محمد"),
    ("5'10\"", "5′10″"),
    ("'U. N.'", "U. N."),
    ("**A***", "A*"),
    ("**bold *nested***", "bold nested"),
    ("The A Team", "The A-Team"),
    ("The A flat", "A-flat"),
]
DIFFERENT = [
    ("", "A"),
    ("the", "a"),
    ("3.5", "35"),
    ("−5", "5"),
    ("-$5", "$5"),
    ("−(5)", "5"),
    ("-.5", ".5"),
    ("-x", "x"),
    ("1/2", "12"),
    ("½", "12"),
    ("2½", "21/2"),
    ("3-5", "35"),
    ("1,5", "15"),
    ("1,5", "1.5"),
    ("0,123", "123"),
    ("10:30", "1030"),
    ("(1, 2)", "12"),
    ("10²", "102"),
    ("10₂", "102"),
    ("2ⁿ", "2n"),
    ("5①", "51"),
    ("1e-5", "1e5"),
    ("5%", "5"),
    ("$5", "5"),
    ("$5", "£5"),
    ("C++", "C"),
    ("C#", "C"),
    ("C#", "C++"),
    (".NET", "net"),
    ("Vitamin", "Vitamin A"),
    ("hepatitis A virus", "hepatitis virus"),
    ("A and B", "B"),
    ("A to Z", "to Z"),
    ("A-ha", "Ha"),
    ("An-225", "225"),
    ("A-", "A"),
    ("A-", "A+"),
    ("Cl⁻", "Cl"),
    ("cafe", "café"),
    ("n(n+1)/2", "n(n+1)*2"),
    ("(a+b)/2", "(a+b)*2"),
    ("(a+b)/2", "a+b/2"),
    ("(a+b)-2", "(a+b)2"),
    ("f(x)/g(x)", "f(x)*g(x)"),
    ("f(x)/g(x)", "f(x)g(x)"),
    ("f(x)-g(x)", "f(x)g(x)"),
    ("1/(2+3)", "1*(2+3)"),
    ("2/(3(4)+1)", "2/(3(4))+1"),
    ("-(a+b)", "-a+b"),
    ("sin(x)/x", "sin(x)x"),
    ("sin(x) - cos(x)", "sin(x)cos(x)"),
    ("J/(mol·K)", "J·mol·K"),
    ("5 - (-3)", "5(-3)"),
    ("5 - -3", "5 -3"),
    ("x * 2", "x 2"),
    ("x * y", "x y"),
    ("x % y", "x y"),
    ("x *= 1", "x = 1"),
    ("x := 5", "x = 5"),
    ("2·3", "2 3"),
    ("$5 - $3", "$5 $3"),
    ("$6 / $3", "$6 $3"),
    ("x != 5", "x = 5"),
    ("5!", "5"),
    ("5! is it", "5 is it"),
    ("n!", "n"),
    ("(n-1)!", "n-1"),
    ("5! = 120", "5 != 120"),
    ("if (!x)", "if (x)"),
    ("y' = 3", "y = 3"),
    ("NO₃⁻", "NO3"),
    ("Cl⁻ ion", "Cl ion"),
    ("2 : 3", "2 3"),
    ("6′", "6"),
    ("6″", "6"),
    ("6′", "6″"),
    ("vitamin A B", "vitamin AB"),
    ("A B", "AB"),
    ("x y", "xy"),
    ("A minor", "minor"),
    ("A major", "major"),
    ("A flat", "flat"),
    ("A sharp", "sharp"),
    ("- 5", "5"),
    ("F = -kx", "F = kx"),
    ("−mgh", "mgh"),
    ("ΔG = −RT ln K", "ΔG = RT ln K"),
    ("e^(-at)", "e^(at)"),
    ("ad - bc", "ad bc"),
    ("T - mg = ma", "T mg = ma"),
    ("-theta", "theta"),
    ("--10 mV", "+10 mV"),
    ("—5", "5"),
    ("(100,200)", "100200"),
    ("(255,255,255)", "255255255"),
    ("[0,1]", "(0,1)"),
    ("[0, 1)", "[0, 1]"),
    ("1,2,3", "1,23"),
    ("A*", "A"),
    ("A* search", "search"),
    ("The A Team", "Team"),
]
forms = st.sampled_from(["unicode", "squad"])
awkward = st.text("aAb the 01,.:-—–'’\"+/%&$#°²₂½()①*_!?=<[′·。、Ⅳİßé\u200b\u00a0", max_size=14)
ends = st.lists(st.sampled_from(["!", "?", ".", '"', "”", "'", ")", "]", "*", "**", "`", "_", " "]), max_size=5).map("".join)
begins = st.sampled_from(["", '"', "“", "'", "(", "[", "*", "**", "`", "_", "- ", "-", "--", "—", "−"])
middles = ["It was 1945", "Vitamin D", "n", "log(n", "5", "ab - cd", "F = -kx", "A*", "1,2,3", "(1, 2)", "The A Team", "Yahoo! x"]
wrapped = st.tuples(begins, begins, st.sampled_from(middles) | awkward, ends).map("".join)
numbers = st.one_of(st.integers(-(10**9), 10**9).map(Decimal), st.decimals(-(10**6), 10**6, places=3, allow_nan=False))


@pytest.mark.parametrize(("a", "b"), SAME)
def test_two_spellings_are_one_answer(a: str, b: str) -> None:
    assert normalize_answer(a) == normalize_answer(b) != ""


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_two_answers_stay_two(a: str, b: str) -> None:
    assert normalize_answer(a) != normalize_answer(b)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("A", "a"),
        ("the", "the"),
        ("The The", "the the"),
        ("A the cat", "cat"),
        ("...", "..."),
        ("+", "+"),
        ("", ""),
        ("\u200b", ""),
    ],
)
def test_articles_and_punctuation_are_dropped_only_if_something_remains(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel  Tower!", "eiffel tower"),
        ("a cat, an owl and the theatre", "cat owl and theatre"),
        ("U.S.A.", "usa"),
        ("twenty-one", "twentyone"),
        ("C++", "c"),
        ("The", "the"),
        ("A.", "a"),
        ("Ümläut's", "ümläuts"),
    ],
)
def test_squad_is_squads_but_for_texts_of_which_it_leaves_nothing(text: str, normal: str) -> None:
    assert normalize_answer(text, "squad") == normal


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What’s it?", "What's it"),
        ("where was Fra-born", "Where  was\tFra born?"),
        ("In the U.S.?", "in the US"),
        ("3+5", "3 + 5?"),
    ],
)
def test_one_question(a: str, b: str) -> None:
    assert normalize_question(a) == normalize_question(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("3 + 5", "3 - 5"),
        ("3 * 5?", "3 / 5?"),
        ("Is it?", "Is it the?"),
        ("x - 1", "x 1"),
        ("What is 8 - (3 - 2)?", "What is 8 - 3 - 2?"),
        ("What does a != b mean?", "What does a = b mean?"),
        ("What is f'(2)?", "What is f(2)?"),
        ("Compute 5!", "Compute 5."),
        ("What is F = -kx?", "What is F = kx?"),
        ("What is ad - bc?", "What is ad bc?"),
    ],
)
def test_two_questions(a: str, b: str) -> None:
    assert normalize_question(a) != normalize_question(b)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Where  was\tFra born?", "where was fra born"),
        ("where was Fra-born", "where was fra born"),
        ("Who's there?!", "who s there"),
    ],
)
def test_squads_questions_hold_no_punctuation(text: str, normal: str) -> None:
    assert normalize_question(text, "squad") == normal


@pytest.mark.parametrize(
    "unit",
    [*".'%(*²′&−ـ", "x!", "x: ", "b ", "(+", "- ", "a-", "J.", "a1", "ab ", "1,", "दि", "+ 1 ", "(1,", "*a*", "--"],
)
def test_a_long_text_takes_no_more_than_its_length(unit: str) -> None:
    tries = itertools.count(1)

    def normalize(length: int) -> None:
        for end in ("", "y-z!"):
            normalize_answer("x" * next(tries) + unit * (length // len(unit)) + end)  # another text each time: answers are kept

    assert grows_as_its_size(normalize, 2_500, 40_000)


@settings(deadline=None)
@given(st.one_of(awkward, wrapped, st.text(max_size=30)), forms)
def test_normalising_twice_changes_nothing(text: str, form: Form) -> None:
    for normalize in (normalize_answer, normalize_question):
        assert normalize(normalize(text, form), form) == normalize(text, form)


@given(numbers, numbers, st.sampled_from(["", "{} km", "about {}", "({})", "“{}”.", "{}%", "${}", "it is {}!", "in {}, he said"]))
def test_numbers_that_differ_stay_different(a: Decimal, b: Decimal, around: str) -> None:
    texts = [(around or "{}").format(f"{number:f}") for number in (a, b)]
    assert a == b or normalize_answer(texts[0]) != normalize_answer(texts[1])
    around = around.replace("({})", "({} km)")  # numbers alone in brackets are listed: (100,200)
    texts[0] = (around or "{}").format(f"{a:f}")
    grouped = (around or "{}").format(f"{a:,f}").replace("-", "−")
    assert normalize_answer(grouped) == normalize_answer(texts[0])


@given(st.one_of(awkward, st.text(max_size=20)), forms)
def test_no_answer_that_shows_something_equals_the_empty_text(text: str, form: Form) -> None:
    shows = any(unicodedata.category(c)[0] in "LNPS" and unicodedata.normalize("NFKC", c).strip() for c in text)
    if shows and not any(c in "\u115f\u1160\u3164\uffa0" for c in text):
        assert normalize_answer(text, form) != ""
