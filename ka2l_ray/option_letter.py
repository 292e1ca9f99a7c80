"""The letter of an option, A to Z, within an answer.

In this order: the last that is said to be the answer ("the answer is B"); the one that the text is or opens with, unless it opens
by repeating the options; the last that is called right ("B is correct"), then picked ("option B.", "it's B"), then in brackets.
A letter that is merely discussed is none ("option A is wrong"), nor is what goes on as a word or a name: an article, the pronoun,
C++, X-ray, B cells, "the answer is E. coli", or two letters at once.
"""

from __future__ import annotations

import re
import string

_BRACKETS = str.maketrans("‘’‚{}[]【】「」", "'''()()()()")
_QUOTES = re.compile(r"""["“”„«»`]|(?<!\w)'|'(?!\w)""")
_COMMAND = re.compile(r"\\[A-Za-z]{1,20} ?(?=\()")
_MARKED = re.compile(r"(?<!\w)[*_$(]{1,8} ?([A-Za-z])[.)]? ?[*_$)]{1,8}(?!\w)")

_ALONE = r"(?![^\W\u2e80-\uffff]|'\w|[+#&@^=%°/<>~|]|-(?! \S)|\.[^\W\d_](?![^\W_])|\(\w)"
_VERB = r"(?:is|are|was|were)"
_REFUTED = (
    rf"(?!\)?,? (?:{_VERB}(?: \w+ly| also| the)? (?:not|incorrect|wrong|false|untrue|inaccurate)\b"
    r"|(?:isn't|aren't|wasn't|cannot|can't|however|on the other)\b))"
)
_ANOTHER_TOO = rf"(?!\)?(?:,? (?:and|or) |, ?| ?& ?)(?:option |choice )?\(?(?-i:[B-HJ-Z])\)?(?!\w|'|\. ?\w| {_VERB}\b))"
_LETTER = rf"\(?(?P<letter>[A-Z]){_ALONE}{_REFUTED}{_ANOTHER_TOO}"
_FUNCTION_WORD = (
    r"(?:because|since|as|and|or|but|not|is|in|by|on|at|from|with|for|of|here|due|given|that|which|where|when|while|according"
    r"|based|if|so)\b"
)
_NO_WORD = rf"(?! (?!{_FUNCTION_WORD})(?:(?-i:[a-zà-ÿ])|(?<=(?-i:[a-z]) )\w))"  # an article, the pronoun, B cells
_NO_SPECIES = r"(?!\. (?-i:[a-z]+(?:i|us|um|ae|is|ile|ens|ans|osa|ica|genes))\b)"  # E. coli
_ENDS = r"\)?(?:\s*\Z|[).:;!?\n—]|(?<!I),| [-—] | (?:because|since|as)\b|(?=[\u2e80-\uffff]))"

_CUE = (
    r"(?<!in)(?<!wrong )(?<!incorrect )(?:answer|antwort|lösung|r[ée]ponse|respuesta|risposta|resposta|antwoord|ответ"
    r"|答案|回答|答え|正解|정답|(?:correct|right|best) (?:option|choice|letter|statement))(?![a-z]| choices| options)"
)
_LINK = r"(?:\b(?:is|be|was|ist|lautet|est|es|è|é)\b|'s\b|[是为は]|:|->|=>|=|→|⇒| - )"
_SAID = re.compile(
    rf"{_CUE}(?:(?! not\b| cannot\b| never\b|n't\b)[^.:=;?!\n>→⇒]){{0,80}}?{_LINK}[:=\s]{{0,4}}"
    r"(?:(?:\w{1,15}ly|most|indeed|the|correct|right|best|option|choice|letter|answer|statement)[: ]{1,2}){0,4}"
    rf"{_LETTER}{_NO_WORD}{_NO_SPECIES}",
    re.IGNORECASE,
)
_OPENS = re.compile(
    rf"\A[^\w(]{{0,9}}(?:A: ?(?=\(?[A-Z]\)?(?:\W|\Z)))?(?:(?:option|choice|letter|answer)[: ]{{1,2}})?{_LETTER}{_ENDS}",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"(?<!nor )(?<![\w'/&.+-])\(?(?P<letter>[A-Z])[).:,]? (?:is|must be|would be|should be|seems|appears)(?: to be)?"
    r" (?:(?!not\b|no\b|never\b|incorrect|wrong|partly|partially)\w+ ){0,3}?(?:correct|right|true|best|answer)\b"
)
_PICKED = re.compile(
    r"\b(?:option|choice|letter|answer|say|choose|pick|select|go with|guess(?: is)?|it's|it is|that's|must be|should be)"
    rf"[:\s]{{1,3}}(?:(?:the|option|choice|letter) ){{0,2}}{_LETTER}{_NO_SPECIES}(?!\)?:){_ENDS}",
    re.IGNORECASE,
)
_IN_BRACKETS = re.compile(rf"(?<!\w)(?=\((?-i:[A-Z])\)){_LETTER}", re.IGNORECASE)

_OPTION = r"(?:(?:[Oo]ption|[Cc]hoice) )?\(?{}[).:](?= ?\S)(?! (?:is|are|was|were|and|or)\b)"
_FIRST_OPTION = re.compile(r"(?:^|[Oo]ptions(?: are)?:? |[Cc]hoices(?: are)?:? )" + _OPTION.format("A"), re.MULTILINE)
_UP_TO_ANOTHER = r"(?:[^\n]{1,200}?\n{1,2}|[^\n.]{1,200}?\.?[ ])"
_NEXT_OPTIONS = [re.compile(_UP_TO_ANOTHER + _OPTION.format(letter)) for letter in string.ascii_uppercase[1:]]
_TO_THE_END_OF_IT = re.compile(r"[^\n]*?(?:\n|\. |\Z)")


def option_letter(text: str) -> str:
    """The letter as a capital, empty where there is none; time is linear in the text."""
    text = _without_marks(text)
    if said := list(_SAID.finditer(text)):
        return said[-1]["letter"].upper()
    text = _without_repeated_options(text)
    if opens := _OPENS.match(text):
        return opens["letter"].upper()
    for pattern in (_RIGHT, _PICKED, _IN_BRACKETS):
        if found := list(pattern.finditer(text)):
            return found[-1]["letter"].upper()
    return ""


def _without_marks(text: str) -> str:
    """Without Markdown, LaTeX and tags; a letter that they set off stands in round brackets; single spaces."""
    text = re.sub(r"<\w{0,20}answer>", " answer: ", text.translate(_BRACKETS), flags=re.IGNORECASE)
    text = re.sub(r"[^\S\n]+", " ", re.sub(r"</?\w{1,20}>", " ", text))
    text = _MARKED.sub(r"(\1)", _COMMAND.sub("", _QUOTES.sub("", text)))
    text = re.sub(r"[*_$\\]", "", text)
    text = re.sub(r"\({2,}", "(", re.sub(r"\){2,}", ")", text))
    return re.sub(r"\n{2,}", "\n\n", re.sub(r" ?\n ?", "\n", text)).strip()


def _without_repeated_options(text: str) -> str:
    """Without a list of options from A on, two or more of them."""
    first = _FIRST_OPTION.search(text)
    if first is None:
        return text
    end = first.end()
    for expected in _NEXT_OPTIONS:
        following = expected.match(text, end)
        if following is None:
            break
        end = following.end()
    if end == first.end():
        return text
    rest = _TO_THE_END_OF_IT.match(text, end)
    return text[: first.start()] + "\n" + text[rest.end() if rest else len(text) :]
