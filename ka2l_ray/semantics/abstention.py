"""Which answers decline to answer: "I don't know" said ten times is one meaning and no knowledge.

An answer is read clause by clause. It abstains where a pattern finds a clause that declines, and no clause beside it answers all
the same: "I'm not sure, but I think it is Paris" answers. Quotations and titles within it, such as "I Don't Know How to Love
Him", are names. To deny what was asked ("There is no such film"), and to choose an option ("(C) Not enough information"), is to
answer.

Of a question's answers, a meaning declines where half of its answers do, and the question goes without an answer where silence
and abstention together are no fewer than the answers of any one meaning.
"""

# ruff: noqa: RUF001 (letters of other alphabets look like ours)
from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ka2l_ray.semantics.abstention_patterns import COUNSEL, FACTS, HARD, PATTERNS, UNKNOWN, any_of, word_set

_OURS = frozenset(PATTERNS)

_BRACKETED = re.compile(r"[\[<{]([^\[\]<>{}]*)[\]>}]")
_ASKED_FOR = word_set("answer name names surname surnames day month year date title number doi insert winner")
_ALONE = word_set("city country state place location person team university college school author artist value amount")
_FILLING = word_set("the a an of in at for your here if known full first last exact specific correct actual final local and s")
_TAGGED = re.compile(r"^\W*[\[<{](?:final )?answer[\]>}]\s*:?\s*(?=\w)|</\w+>", re.IGNORECASE)

# Of the same other tongues: what turns against an abstention, and what opens a guess.
_OTHER_BUT = any_of("aber mais pero mas ma maar men ale ama fakat но а लेकिन nhưng tapi tetapi")
_OTHER_GUESS = (
    r"(?:ich (?:glaube|denke|vermute)|vielleicht|wahrscheinlich|vermutlich|je (?:pense|crois)|peut-être|probablement|creo que"
    r"|quizás?|tal vez|probablemente|acho que|talvez|provavelmente|credo|penso|forse|ik (?:denk|geloof)|misschien|waarschijnlijk"
    r"|jag tror|kanske|chyba|może|myślę|sanırım|belki|наверное|возможно|может быть|я думаю|думаю|ربما|أعتقد|शायद|có lẽ|có thể"
    r"|mungkin)(?!\w)|可能|也许|也許|大概|或许|或許|たぶん|おそらく|多分|아마|อาจ"
)
_GUESSES = re.compile(
    r"^(?:i(?:'d| would)? (?:\w+ )?(?:think|believe|guess|suspect|assume|say)\b|my (?:best )?guess|assuming|perhaps|maybe"
    r"|probably|possibly|likely|(?:around|about|roughly|approximately|circa) (?=\d)"
    r"|(?:the )?(?:most likely|likely|best|probable|correct) )"
    r"|^(?:(?:some|most|many) )?(?:estimates|sources|reports|experts|scholars) (?:suggest|say|indicate|put|believe|estimate)\b"
    rf"|^(?!i\b|we\b|it\b).{{1,60}} (?:likely|probably)\b|^(?:(?:{_OTHER_BUT}) )?(?:{_OTHER_GUESS})"
)
_TELLS = re.compile(
    r"^it(?:'s|'d| is| was| has| occurred| happened| took| (?:could|might|may|would) (?:be|have))\b"
    r"(?! (?:not|possible|important|helpful|useful|better|great|best|always|worth|recommended|essential|advisable|crucial"
    r"|common)\b)|^i(?: do| did)? (?:find|found|know|recall|remember) that (?:he|she|it|they)\b|^yes\b|^no,"
)
"""What answers behind an abstention, whatever was asked."""
_DENIES = re.compile(r"^there (?:is|are|was|were|has been|have been) (?:currently )?(?:no|never)\b")
_KIND = re.compile(r"(?<=\bwhat )\w+|(?<=\bwhich )\w+")
"""What kind of thing was asked for: an answer puts the thing itself there."""
_FOUND = r"i (?:do |did |can )?(?:only )?(?:find|found|know|recall|remember|tell|say|confirm)\b"
_FOUND_THAT = re.compile(rf"^{_FOUND}(?: you)? that\b,? ?")
_ASKS = re.compile(
    rf"^(?:could|can|would|do) you\b|^if (?!you are)|^(?:(?!{_FOUND})i|we)\b|^(?:please|you)\b"
    r"|^for (?:more|the most|further|the latest)\b|^it(?: is|'s) (?:recommended|best|advisable|important|always|possible)\b"
    r"|^(?:there are|these|this)\b.* sources\b|^to (?:determine|know|find|answer|check|verify|get)\b"
    r"|^(?:the|one|a) (?:\w+ )?way (?:to|of)\b"
    r"|^.{1,200} (?:can|could|may|might|should) be (?:found|obtained|accessed|checked|verified|searched)\b.{0,80}"
    r" (?:online|websites?|internet|sources|databases?|records|reports|search\w*)\b"
    r"|^the answer to (?:this|the|your) question\b|^.{1,200} (?:vary|varies|depends?|change) (?:\w+ly )?(?:on|by|depending)\b"
)
"""What speaks to the asker instead of answering."""
_STOP_WORDS = word_set(
    "a an and are as at be been by did do does for from had has have he her his in is it its of on or she that the their they"
    " this s to was were what when where which who whom whose with how many much year month day date name i find found know can"
    " tell say you information about after before first last"
)
RESTATED = 0.7
"""Share of the question's words that what stands behind an abstention says again, where it answers after all: what was found
out about the subject instead does not (chosen on gen_simpleqa, where an LLM said which answers attempt one; 0.6 to 0.8 do as
well)."""
RESTATED_OF_A_NUMBER = 0.3
"""The same where a number was asked for, and is told."""
_WANTS_A_NUMBER = re.compile(
    r"^when\b|\bhow (?:many|much|old|tall|long|far|high|heavy|deep|large|fast)\b"
    r"|\b(?:what|which)(?: \w+,?){0,3} (?:year|date|day|month|age|number|population|percentage)\b"
)
_DISCLAIMS = re.compile(
    r"^(?:i|we)\b.*\b(?:real[- ]time|(?<!my )current|latest|up[- ]to[- ]date|recent|live|training|cut-?off|browse|internet|future"
    r"|(?:medical|legal|financial|professional) advice)\b"
)
"""What a language model says of itself, whatever is asked: less that stands behind it will do for an answer."""
_NUMBERS = re.compile(
    r"\d+|\b(?:january|february|march|april|may|june|july|august|september|october|november|december|spring|summer|autumn|winter"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)days?|zero|one(?! of)|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
    r"|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)t(?:y|ies)|hundreds?|thousands?"
    r"|millions?|billions?)\b"
)
_OF_THE_ANSWER = re.compile(
    rf"^(?:i|we)\b|\b(?:exact|specific|precise|actual|{FACTS}|sources|records|names?|identity|identities|{UNKNOWN})\b"
    r"|^it(?: is|'s) (?:not possible|impossible)\b"
)
"""An abstention that may take back what stands before it: the speaker's own, or about what is known."""
FEW = 4
_DOUBT = re.compile(r"\b(?:verify|verified|confirm|confirmed|sure|certain|guarantee|more|further|additional)\b")
_LACKING = re.compile(r" without .*")
"""What it would take is no doubt about what was said."""
_CONCLUDES = r"(?:so|thus|therefore|hence|consequently|accordingly|as such|as a result|for (?:this|that) reason|in conclusion)"
_OPENING = re.compile(
    r"^(?:(?:(?:(?:i am|i'm|we are|we're|my) )?(?:very |really |so |deeply )?(?:sorry|apologies|apologize|apologise|afraid)\b"
    r"(?: (?:but|that|for)\b)?|unfortunately|regrettably|sadly|honestly|however|but|and|though|although|still|that said"
    rf"|{_CONCLUDES}|because|(?:since|as)(?= (?:i|we|it|the|there)\b)|currently"
    r"|at (?:this time|present|the moment)|well|hmm+|oh|u[mh]+|note"
    r"|(?:(?:that's|that is) )?an? (?:good|great|interesting|difficult|hard|tough) (?:one|question)"
    r"|(?:good|great|interesting) question"
    rf"|(?:{_OTHER_BUT}|lo siento|(?:je suis )?désolée?|desculpe|mi dispiace|scusa|es tut mir leid|tut mir leid|leider|helaas"
    r"|tyvärr|niestety|przepraszam|к сожалению|извините|простите|üzgünüm|maalesef|抱歉|对不起|對不起|很遗憾"
    r"|很遺憾|すみません(?:が)?|申し訳(?:ありません|ございません)(?:が)?|죄송합니다(?:만)?|죄송하지만|عذر[اً]+|آسف|للأسف|क्षमा करें"
    r"|माफ.? कीजिए|xin lỗi|rất tiếc|(?:mohon )?maaf|sayangnya|ขออภัย|ขอโทษ)(?!\w)"
    r"|as an? (?:large )?(?:ai|language)\b[^,]{0,80}?(?=,| i\b)|(?:based on|according to|without|given|after) [^,]{0,200}(?=,)"
    r"|as of [^,]{1,60}(?=,)(?:, ?\d{4}(?=,))?|to (?:answer|give|provide|determine|find|know|calculate) [^,]{0,200}"
    r"(?=, (?:i|we)\b)|yes or no(?: answer)?(?= *(?:[:./]|$))|to be honest|as far as i(?: am|'m)? (?:know|aware)"
    r"|to (?:the best of )?my knowledge)(?!\w)[,:;.() 、،]*)+"
)
_CLOSING = re.compile(r",? (?:sorry|i'm sorry|i am sorry|apologies|though|unfortunately|honestly|at all)$")
_CLAUSES = re.compile(
    r"(?<!\b[a-z])(?<!\b(?:dr|mr|ms|st|jr|sr|no|vs|mt))(?<!\b(?:mrs|gen|col|rev))(?<!\bprof)(?<![.!?])([.!?]++)(?:\s+|$)|[。\n]+|;"
    r"| \((?=[^()]*+\)?\W{0,9}$)|,? (?=(?:but|however|though|although)\b)"
    r"|, (?=(?:maybe|perhaps|possibly|probably|around|about|roughly|approximately)\b)"
    rf"|,? (?=(?:and|because|{_CONCLUDES},?) (?:(?:i|we)(?: \w+)? (?:can|do|am|have)|(?:i|we)'|you (?:can|may|should)"
    rf"|it (?:is|can) ?(?:not|un|n't|{HARD})))"
    rf"|, (?={_CONCLUDES}\b|[^,.!?;\n]{{1,40}}\?(?:\s|$))|, (?=(?:{_OTHER_BUT})\b)|[,、،] ?(?=但|不过|不過|{_OTHER_GUESS})"
)
_CONTRAST = re.compile(
    rf"^\W*(?:but|however|though|although|unfortunately|without|{_CONCLUDES})\b|^\W*(?:(?:as|since|because) )?(?:i|we)\b"
    rf"|^(?:{_OTHER_BUT})\b|^但|^不[过過]|^\W*it(?: is|'s) (?:not possible|impossible)\b"
)
_ASIDE = re.compile(r", (?:whose|which|where|who) (?:(?!question|passage|context|information|provided)[^,])*(?=,|$)")
"""What a relative clause adds about the answer: "Dark matter, whose nature is unknown"."""
_OPTION = re.compile(
    r"^\W*(?:(?:the )?(?:(?:correct|final|best) )?answer(?: is)?:? |option )?(?:\([a-h]\)|[a-h][.)]|[b-h]:)(?=[\s*]|$)"
)
"""The letter of an option, which is an answer, whatever the option says."""
_ADVICE = re.compile(
    r"\b(?:should|must|ought|(?:have|has|had|need|needs|supposed) to|how to|advice|advise|recommend\w*"
    r"|(?:how|what) (?:can|could|do|would) (?:i|you|we|one|someone|people))\b"
)
"""Who asks this may be answered with what else declines."""
_ITS = re.compile(r"^(?:its|his|her|their)(?: (?:exact|specific|precise|actual|true|real))? (\w+)")
_ASKS_BACK = re.compile(
    r"^(?:who|what|when|where|why|which|how|can|could|would|will|do|does|did|is|are|was|were|any|anything|please|sorry|right|okay|ok"
    r"|really|you|have|next|if)\b"
)
_SPEAKER = re.compile(r"(?:i|we|you|if|it|please)\b")
"""Of the speaker or to the asker."""
_NO_THING = re.compile(r"(?:i|we|you|if|it|this|that|please|has|have|had|is|are|was|were|not|also)\b")
"""What a few words that name an answer do not begin with."""
_EDGES = " ,.:;!?()。、،¿¡"
_TITLE = re.compile(r"\b(?:I|We|You|Nobody|Don't|Can't|Cannot|Couldn't) [A-Z][a-z][\w']*(?: [A-Z][\w']*)*")
_QUOTED = re.compile(r'(?<=\S )"[^"]+"|"[^"]+"(?= \S)')


class _Clause(NamedTuple):
    """A folded clause of an answer, without what opens and closes it."""

    text: str
    contrasts: bool
    """Whether it speaks of itself, or against what stands before it, or draws a conclusion."""
    wonders: bool
    """Whether it ends with a question mark."""

    @property
    def claim(self) -> str:
        """What it says that was found ("I can tell you that ...")."""
        return _FOUND_THAT.sub("", self.text)


def abstains(answer: str, question: str = "", patterns: Sequence[str] = PATTERNS) -> bool:
    """Whether an answer declines to answer. Silence is none: it says nothing at all.

    Args:
        question: what was asked, where it is known: what is told instead of a number that was asked for is no answer.
        patterns: regular expressions, see ``PATTERNS``.
    """
    asked = _asked(question)
    idle = _OURS if _OPTION.match(_folded(answer)) else frozenset(COUNSEL if asked.wants_advice else ())
    declines = _compiled(tuple(pattern for pattern in patterns if pattern not in idle))
    abstained = answered = disclaimed = guessed = firm = False
    said: set[str] = set()  # since it abstained
    for clause in _clauses(answer, question):
        if any(pattern.search(_ASIDE.sub("", clause.claim)) for pattern in declines):
            disclaimed = not answered and _DISCLAIMS.search(clause.text) is not None
            abstained |= not answered or (not guessed and _takes_back(clause, asked, firm))
            answered &= not abstained
        elif not abstained:
            answered, firm = True, firm or asked.is_met(clause.text)
            guessed |= _GUESSES.match(clause.text) is not None
        else:
            if not _ASKS.match(clause.claim):
                said |= _stems(clause.claim)
            if _answers_after_all(clause, said, asked, disclaimed):
                abstained, answered, said = False, True, set()
    return abstained


class _Question:
    """What was asked, folded, and what an answer to it has to hold."""

    def __init__(self, text: str) -> None:
        self.wants_advice = _ADVICE.search(text) is not None
        self.wants_a_number = _WANTS_A_NUMBER.search(text) is not None
        self.wants_a_time = text.startswith("when")
        self.wants_a_word = re.search(r"\b(?:what|which)\b", text) is not None and not self.wants_a_number
        self.words = _stems(text)
        self.subject = _stems(_KIND.sub("", text))
        self._numbers = set(_NUMBERS.findall(text))

    def has_number(self, clause: str) -> bool:
        """Whether a clause tells a number that the question does not."""
        return not self._numbers.issuperset(_NUMBERS.findall(clause))

    def is_met(self, clause: str) -> bool:
        """Whether a clause denies, or tells what the question does not: a number where it asks for one."""
        if not self.words or re.search(r"\b(?:not|no|never|none)\b|n't\b", clause):
            return True
        return self.has_number(clause) if self.wants_a_number else bool(_stems(clause) - self.words)


@lru_cache(maxsize=64)
def _asked(question: str) -> _Question:
    """A question's answers come together: it is read once."""
    return _Question(_folded(question))


def _takes_back(clause: _Clause, asked: _Question, firm: bool) -> bool:
    """Whether what declines behind an answer takes it back, as doubts ("though I cannot confirm it"), notes ("(the month is not
    known)") and what was not asked for ("its exact origin is unknown") do not.

    Args:
        firm: whether the answer tells what the question does not, or a number where one was asked for.
    """
    if not firm and not _SPEAKER.match(clause.text):
        return True
    its = _ITS.match(clause.text)
    if its and asked.wants_a_word and its[1][:5] not in asked.words:
        return False
    return bool(clause.contrasts and _OF_THE_ANSWER.search(clause.text) and not _DOUBT.search(_LACKING.sub("", clause.text)))


def _answers_after_all(clause: _Clause, said: set[str], asked: _Question, disclaimed: bool) -> bool:
    """Whether an abstention is taken back: by a guess, or by what tells the thing that was asked for.

    Args:
        said: stems of what stands between the abstention and here, the clause included.
        disclaimed: whether the abstention is what a language model says of itself.
    """
    text = clause.text
    few = len(text.split()) <= FEW  # the answer ("but Paris"), or a guess ("Paris?")
    if _GUESSES.match(text) or (few and clause.contrasts and not _NO_THING.match(text)):
        return True
    if few and clause.wonders and not _ASKS_BACK.match(text):
        return True
    if asked.wants_a_number and not asked.has_number(text) and not (disclaimed and asked.wants_a_time):
        return False
    if _TELLS.match(text) or (disclaimed and _DENIES.match(clause.claim)):
        return True
    if _ASKS.match(clause.claim):
        return False
    if not asked.subject:
        return disclaimed or _FOUND_THAT.match(text) is not None
    if disclaimed and asked.wants_a_number:
        return True
    share = RESTATED_OF_A_NUMBER if asked.wants_a_number else RESTATED
    enough = 1 if disclaimed else share * len(asked.subject)
    return len(asked.subject & said) >= enough and bool(_stems(clause.claim) - asked.subject)


def _stems(text: str) -> set[str]:
    return {word[:5] for word in re.findall(r"\w+", text) if word not in _STOP_WORDS}


def _is_placeholder(bracketed: str, question: str) -> bool:
    """Whether what stands in brackets holds an answer's place, "[Name of the winner]", saying what the question says already."""
    words = re.findall(r"\w+", bracketed.casefold())
    if len(words) == 1 and words[0] in _ALONE:
        return True
    said, asked = _ASKED_FOR | _FILLING | _ALONE, _stems(question.casefold())
    new = sum(word not in said and word[:5] not in asked for word in words)
    return not _ASKED_FOR.isdisjoint(words) and 10 * new <= len(words)


@lru_cache(maxsize=16)
def _compiled(patterns: tuple[str, ...]) -> list[re.Pattern[str]]:
    """Ours as one; each of the user's by itself, with groups and flags of its own."""
    ours = [f"(?:{pattern})" for pattern in patterns if pattern in _OURS]
    return [
        re.compile(each, re.IGNORECASE) for each in (*filter(None, ["|".join(ours)]), *(p for p in patterns if p not in _OURS))
    ]


def _folded(text: str) -> str:
    """In small letters, quotes and dashes straight, quotations and titles hidden: what a name is made of says nothing."""
    text = re.sub("[\u2018\u2019\u02bc`\u00b4]", "'", unicodedata.normalize("NFKC", text))
    text = re.sub("[\u2010-\u2015]", "-", re.sub("[\u201c\u201d]", '"', text))
    return _TITLE.sub("Title", _QUOTED.sub("Title", text)).casefold()


def _clauses(answer: str, question: str) -> list[_Clause]:
    """Clauses of an answer that say something."""
    text = _TAGGED.sub(" ", answer)
    text = _folded(_BRACKETED.sub(lambda found: "unknown. " if _is_placeholder(found[1], question) else found[0], text))
    text = re.sub(r'["*_\[\]<>{}#]', "", text)
    text = re.sub(r"^\s*(?:(?:final )?answer|a)\s*:\s*", "", text)
    text = re.sub(r" (?=n't\b)", "", text)  # "do n't", as some tokenizers part it
    clauses = []
    parts = _CLAUSES.split(text)  # what is said and, after each, the marks that end it, or None
    for part, marks in zip_longest(parts[::2], parts[1::2]):
        clause = _OPENING.sub("", part.strip(_EDGES)).strip(_EDGES)
        clause = _CLOSING.sub("", clause)
        if clause:
            clauses.append(_Clause(clause, bool(_CONTRAST.match(part)), "?" in (marks or "")))
    return clauses


def without_answer(cluster_ids: NDArray[np.integer], declines: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(...) whether a question goes without an answer, in the sense of the module.

    Args:
        cluster_ids: (..., n) meanings of a question's answers.
        declines: (..., n) whether each is silence or an abstention.
    """
    same_NN = cluster_ids[..., :, None] == cluster_ids[..., None, :]
    size = same_NN.sum(-1)
    declining = 2 * (same_NN & declines[..., None, :]).sum(-1) >= size
    silent = declining.sum(-1)
    found: NDArray[np.bool_] = (silent > 0) & (silent >= np.where(declining, 0, size).max(-1))
    return found


def without_answer_decided(cluster_ids: Sequence[int], declines: Sequence[bool], k: int) -> bool:
    """Whether answers to come, up to ``k``, leave a question whose answers nearly all mean the same with or without an answer."""
    to_come, commonest = k - len(cluster_ids), Counter(cluster_ids).most_common(1)[0][0]
    joining, apart = [commonest] * to_come, [max(cluster_ids) + 1 + i for i in range(to_come)]
    ends = [
        without_answer(np.array([*cluster_ids, *ids]), np.array([*declines, *[declining] * to_come], bool)).item()
        for ids in (joining, apart)
        for declining in (False, True)
    ]
    return len(set(ends)) == 1


def expanded(patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns of a configuration, where ``default`` stands for those of this module."""
    return tuple(each for pattern in patterns for each in (PATTERNS if pattern == "default" else (pattern,)))
