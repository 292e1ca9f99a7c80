"""The letter of an option, A to Z, within an answer.

In this order: the last that is said to be the answer ("the answer is B"), but not where it is denied or supposed ("you might
think the answer is B"); the one option called right where each is judged on a line of its own; a last line of one letter; the one
that the text is or opens with, unless it opens by repeating the options; the last that is called right ("B is correct"), then
picked ("option B.", "so B."); the one that the last line opens with; the only one in bold with its text; the last in brackets. A
letter that is merely discussed is none ("option A is wrong"), nor is what goes on as a word or a name: an article, the pronoun,
C++, X-ray, B cells, "the answer is E. coli", or two letters at once.
"""

from __future__ import annotations

import re
import string

_BRACKETS = str.maketrans("‘’‚{}[]【】「」", "'''()()()()")
_QUOTES = re.compile(r"""["“”„«»`]|(?<!\w)'|'(?!\w)""")
_QUESTION = re.compile(r"""["“«][^"”»\n]{1,200}[?!.]["”»] ?(?=[a-z])""")
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
_SPECIES = {
    "A": "baumannii|thaliana|niger|fumigatus|aegypti|gambiae|israelii|lumbricoides|tumefaciens|duodenale|mellifera",
    "B": "subtilis|cereus|anthracis|pertussis|burgdorferi|fragilis|henselae|melitensis|abortus|cepacia|thuringiensis|taurus|mori",
    "C": "elegans|difficile|albicans|botulinum|tetani|jejuni|trachomatis|neoformans|diphtheriae|immitis|auris|familiaris",
    "D": "melanogaster|rerio|medinensis|radiodurans|latum|pneumoniae",
    "E": "coli|faecalis|faecium|histolytica|granulosus|vermicularis|aerogenes|cloacae|multilocularis",
    "F": "tularensis|hepatica|catus|oxysporum|nucleatum",
    "G": "lamblia|vaginalis|intestinalis|duodenalis|gallus|max|gorilla",
    "H": "pylori|influenzae|sapiens|erectus|habilis|neanderthalensis|ducreyi|capsulatum|nana",
    "I": "scapularis|ricinus|batatas",
}
_NO_SPECIES = (  # E. coli; of the letters that are seldom options, whatever word of Latin form stands alone
    "(?!"
    + "|".join(rf"(?<={genus})\. (?:{names})\b" for genus, names in _SPECIES.items())
    + r"|(?<=[J-Z])\. (?-i:[a-z]+(?:i|us|um|ae|is|ile|ens|ans|osa|ica|genes))\b(?! \w))"
)
_ENDS = (
    r"\)?(?:\s*\Z|[).:;!?\n—]|(?<!I),| [-—] | \([^()\n]{1,200}\)(?=\.?\s*(?:\Z|\n))| (?:because|since|as)\b|(?=[\u2e80-\uffff]))"
)

_CUE = (
    r"(?<!in)(?<!wrong )(?<!incorrect )(?:answer|\bans\b\.?|\bsolution(?= ?:| is\b)|\bcorrect(?= ?:)"
    r"|(?:correct|right|best) (?:option|choice|letter|statement|response|one|alternative|selection)"
    r"|antwort|lösung|r[ée]ponse|respuesta|risposta|resposta|antwoord|\bsvar(?:et)?\b|vastaus|odpowied[źz]|odpověď|răspuns(?:ul)?"
    r"|(?:opci[óo]n|alternativa|opção|opzione|option|proposition) corre(?:c|t|tt)[aet]*|ответ|відповідь|απάντηση"
    r"|cevap|cevabı|yanıt|đáp án|câu trả lời|jawaban|jawapan|الإجابة|الجواب|جواب|پاسخ|תשובה|उत्तर|जवाब|উত্তর|คำตอบ"
    r"|答案|回答|答え|正解|正[确確]的?[选選][项項]|正しい選択肢|답)(?![a-z]| choices| options)"
)
_LINK = (
    r"(?:\b(?:is|be|was|ist|lautet|est|es|è|é(?: a)?|este|là|adalah|ialah|είναι|هي|هو|היא|הוא)\b|'s\b|[是为為は은는选選]|คือ"
    r"|:|->|=>|=|→|⇒"
    r"| - | ?— ?|(?<=odpowied[źz]) (?:to|jest)\b|(?<=svar|aret) (?:er|är)\b|(?<=vastaus) on\b|(?<=odpověď) je\b"
    r"|(?<=cevap|yanıt) |(?<=cevabı) |(?<=उत्तर) |(?<=जवाब) )"
)
_FILLER = (
    r"(?:\w{1,15}ly|most|indeed|therefore|thus|hence|still|then|again|also|always|of course|in fact|I think|I believe"
    r"|the|correct|right|best|option|choice|letter|answer|statement|la|el|il|le|die|der|das|opci[óo]n|opção|opzione|alternativa|letra|lettera"
    r"|lettre|litera|buchstabe|antwort|réponse|respuesta|resposta|risposta|odpowiedź|вариант|буква|pilihan|huruf|选项|選項)"
)
_SAID = re.compile(
    rf"{_CUE}(?:(?! not\b| cannot\b| never\b|n't\b)[^.:=;?!\n>→⇒]){{0,80}}?{_LINK}[:=,\s]{{0,4}}"
    rf"(?:{_FILLER}[:, ]{{1,2}}){{0,4}}{_LETTER}{_NO_WORD}{_NO_SPECIES}",
    re.IGNORECASE,
)
_OPENS = re.compile(
    rf"\A[^\w(]{{0,9}}(?:A: ?(?=\(?[A-Z]\)?(?:\W|\Z)))?(?:(?:option|choice|letter|answer)[: ]{{1,2}})?"
    rf"{_LETTER}{_NO_SPECIES}{_ENDS}",
    re.IGNORECASE,
)
_CHOSEN = re.compile(  # 故选B
    rf"(?<![不别如未])(?<!如果)[选選](?:[择擇]|[:是为])? ?(?=\(?[A-Z]\)?(?:[项項。、.,;!\s]|\Z)){_LETTER}{_NO_WORD}{_NO_SPECIES}"
)
_RIGHT = re.compile(
    r"(?<!nor )(?<![\w'/&.+-])\(?(?P<letter>[A-Z])[).:,]? (?:is|must be|would be|should be|seems|appears)(?: to be)?"
    r" (?:(?!not\b|no\b|never\b|incorrect|wrong|partly|partially)\w+ ){0,3}?(?:correct|right|true|best|answer)\b"
)
_PICKED = re.compile(
    r"\b(?:(?:therefore|thus|hence|so|consequently),?(?=[:\s]{1,3}(?:(?:the|option|choice|letter) ){0,2}\(?(?-i:[A-Z]))"
    r"|option|choice|letter|answer|say|choose|pick|select|go with|guess(?: is)?|it's|it is|that's|must be|should be)"
    rf"[:\s]{{1,3}}(?:(?:the|option|choice|letter) ){{0,2}}{_LETTER}{_NO_SPECIES}(?!\)?:){_ENDS}",
    re.IGNORECASE,
)
_DESCRIBES = re.compile(
    rf"(?:\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer|[Ss]tatement) |\A|\n|[.!:] )"
    rf"(?=\(?[A-Z]\)? (?:best|correctly|accurately|most \w+ly) \w){_LETTER}"
)
_RIGHT_ELSEWHERE = re.compile(
    r"(?<![^\W\u2e80-\uffff])\(?(?P<letter>[A-Z])\)?(?:[项項번]? ?[是はが이가은는]? ?(?:最?正[确確]|对的|正解|正しい|정답|맞)"
    r"| (?:es|est|ist|è|é|jest|är|er) (?:(?!pas|plus|no|non|nicht|não|inc)\w+ ){0,2}?"
    r"(?:correct[aeo]?|richtige?|corrett?[ao]|juste|rätt)\b)"
)
_CLOSES = re.compile(rf"[.!?] (?=\(?[A-Z]\)?\.?\Z){_LETTER}")
_IN_BRACKETS = re.compile(rf"(?<!\w)(?=\((?-i:[A-Z])\)){_LETTER}", re.IGNORECASE)

_SET_OFF = re.compile(
    rf"(?<!\w)(?:\*\*|__)\(?(?P<letter>[A-Z])(?:\)|(?=[.:])){_NO_SPECIES}"
    r"[.:]? ?(?![A-Z]\.)(?=\w)[^*\n]{1,200}(?:\*\*|__)(?!\w)"
)
_LAST_LINE = re.compile(r"[^\n]*\Z")
_BARE = re.compile(rf"\W{{0,9}}(?=[A-Z]\W{{0,9}}\Z){_LETTER}")

_HEDGED = re.compile(  # before what is said: "you might think", "I don't think", "if"
    r"(?:(?<!\bI )(?<!\bwe )\b(?:might|may|could|would)(?: \w+)? (?:think|say|believe|assume|guess|argue"
    r"|expect|conclude|suppose|suspect)"
    r"|\b(?:people|students|others|many|some|you|tempted to)(?: \w+)? (?:think|say|believe|assume|guess|argue)"
    r"|\b(?:not|never|cannot|\w+n't|hardly|if|whether|suppose|supposing|assuming|unless))"
    r"(?: (?!so\b|hence\b|thus\b|therefore\b|then\b|but\b|and\b|since\b|because\b|only\b|that's\b)[\w']+){0,3} ?\Z"
    r"|\b(?:might|may|could) \Z",
    re.IGNORECASE,
)
_POSSIBLE = re.compile(r"\b(?:might|may|could)(?: \w+)? be\b", re.IGNORECASE)
_CONDITIONAL = re.compile(r"\bwould(?: \w+)? be\b", re.IGNORECASE)
_CONDITION = re.compile(r"\b(?:if|were|had|unless|otherwise)\b", re.IGNORECASE)
_BEFORE = 80

_OPTION = r"(?:(?:[Oo]ption|[Cc]hoice) )?\(?{}[).:](?= ?\S)(?! (?:is|are|was|were|and|or)\b)"
_FIRST_OPTION = re.compile(r"(?:^(?:[-•] )?|[Oo]ptions(?: are)?:? |[Cc]hoices(?: are)?:? )" + _OPTION.format("A"), re.MULTILINE)
_UP_TO_ANOTHER = r"(?:[^\n]{1,200}?\n{1,2}|[^\n.]{1,200}?\.?[ ])"
_NEXT_OPTIONS = [re.compile(_UP_TO_ANOTHER + "(?:[-•] )?" + _OPTION.format(letter)) for letter in string.ascii_uppercase[1:]]
_JUDGED = re.compile(
    r"^(?:[-•] )?(?:[Oo]ption |[Cc]hoice )?\(?(?P<letter>[A-Z])\)?[).:]? ?(?:[^\n]{0,200}?[-—:(] ?)?"
    r"(?:[Tt]his is |[Ii]t is |[Ii]s )?"
    r"(?:(?P<right>[Cc]orrect|[Rr]ight|[✓✔✅])|[Ii]ncorrect|[Ww]rong|[Ff]alse|[Nn]ot\b|[✗✘❌×])(?![\w-]| [a-z]+\Z)",
    re.MULTILINE,
)
_TO_THE_END_OF_IT = re.compile(r"[^\n]*?(?:\n|\. |\Z)")


def option_letter(text: str) -> str:
    """The letter as a capital, empty where there is none; time is linear in the text."""
    marked, text = text.translate(_BRACKETS), _without_marks(text)
    letter = _told((_SAID, _CHOSEN), text) or _told((_SAID,), text, conditional=True) or _judged_right(text)
    if letter:
        return letter
    text = _without_repeated_options(text)
    last_line = _LAST_LINE.search(text, text.rfind("\n") + 1)
    assert last_line is not None
    if opens := _BARE.match(last_line[0]) or _OPENS.match(text):
        return opens["letter"].upper()
    for pattern in (_RIGHT, _RIGHT_ELSEWHERE, _DESCRIBES, _PICKED):
        if letter := _told((pattern,), text):
            return letter
    opens = _OPENS.match(last_line[0])
    if opens and not last_line[0].startswith("A:") and not _is_listed(opens["letter"].upper(), text[: last_line.start()]):
        return opens["letter"].upper()
    set_off = {found["letter"] for found in _SET_OFF.finditer(marked)}
    return set_off.pop() if len(set_off) == 1 else _told((_CLOSES, _IN_BRACKETS), text)


def _told(patterns: tuple[re.Pattern[str], ...], text: str, conditional: bool = False) -> str:
    """The letter of the last match that neither denies nor supposes what it says."""
    found = sorted((match for pattern in patterns for match in pattern.finditer(text)), key=lambda match: match.start("letter"))
    return next((match["letter"].upper() for match in reversed(found) if _is_meant(match, conditional)), "")


def _is_meant(found: re.Match[str], conditional: bool) -> bool:
    text, start = found.string, found.start()
    before = re.split(r"[.!?;\n]", text[max(0, start - _BEFORE) : start])[-1]
    said = text[start : found.start("letter")]
    if _HEDGED.search(before) or _POSSIBLE.search(said):
        return False
    if _CONDITIONAL.search(said):
        return conditional and not _CONDITION.search(before) and not text.startswith((" if ", " unless "), found.end())
    return True


def _judged_right(text: str) -> str:
    """Of options that are called right or wrong line by line, the only one that is right."""
    judged = list(_JUDGED.finditer(text))
    right = [each["letter"] for each in judged if each["right"]]
    return right[0] if len(right) == 1 and len(judged) > 1 else ""


def _is_listed(letter: str, lines: str) -> bool:
    """Whether the option before this one opens a line too."""
    return letter > "A" and bool(re.search(rf"^[-• (]{{0,4}}{chr(ord(letter) - 1)}[).:] ?\S", lines, re.MULTILINE))


def _without_marks(text: str) -> str:
    """Without Markdown, LaTeX and tags; a letter that they set off stands in round brackets; single spaces."""
    text = re.sub(r"<\w{0,20}answer>", " answer: ", text.translate(_BRACKETS), flags=re.IGNORECASE)
    text = re.sub(r"\\f?boxed(?=\()", " answer: ", _QUESTION.sub("it ", text))
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
