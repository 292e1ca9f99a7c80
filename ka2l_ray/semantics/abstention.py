"""Which answers decline to answer: "I don't know" said ten times is one meaning and no knowledge.

An answer is read clause by clause. It abstains where a pattern finds a clause that declines, and no clause beside it answers all
the same: "I'm not sure, but I think it is Paris" answers. Quotations and titles within it, such as "I Don't Know How to Love
Him", are names. To deny what was asked ("There is no such film") is to answer.

Of a question's answers, a meaning declines where half of its answers do, and the question goes without an answer where silence
and abstention together are no fewer than the answers of any one meaning.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def _any(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_TELL = _any("say tell know determine provide answer identify give find verify locate confirm pinpoint specify ascertain")
_ABLE = _any("found recall remember access sure certain aware familiar able see assist help comment predict guess")
_TOLD = _any(
    "available known provided specified mentioned stated disclosed documented confirmed found listed detailed recorded determined"
    " identified verified supplied established answered accessible calculated given announced named"
)
_FACTS = _any("information info data details? context answer sources? documentation")
_MEANS = _any("access knowledge idea clue ability memory record")
_INCLUDE = _any("specify provide mention include contain lead say state match")
_NOT = r"(?:(?: \w+)? (?:do|did|can|ca|could|would|am|are|was|were|have)(?: not|n't|nt)|'m not|'re not|(?: \w+)? cannot|'ve not)"
_IS = _any("is are was were")
_IS_NOT = rf"(?:{_IS}(?: not|n't)|ha(?:s|ve)(?: not|n't) been)"
_SOUGHT = _any("confirmed verified identified determined referenced checked researched retrieved obtained consulted found")
_DOES_NOT = r"(?:do|does|did)(?: not|n't)"
_ABOUT = _any(
    "is are was were about on of to for regarding available provided found here that in at given exists? concerning confirming"
)
_FROM = _any("in with from based at by here within without as because due")
_OPENLY = _any("explicitly specifically directly clearly publicly officially readily widely definitively reliably")
_UNKNOWN = _any("unknown unclear uncertain undisclosed unavailable unspecified undocumented")

PATTERNS = (
    # I do not know, cannot find or tell, lack what it would take.
    rf"^(?:i|we){_NOT}(?: \w+){{0,3}} (?:{_TELL}|{_ABLE})\b",
    rf"^(?:i|we){_NOT} (?:have|possess)(?: \w+){{0,4}} (?:{_FACTS}|{_MEANS})\b",
    r"^(?:i|we)(?:'ve| have) never heard of\b",
    r"^(?:i|we)(?:'m| am|'re| are| was| were)?(?: \w+)? (?:unable|unaware|unfamiliar|unsure|uncertain)\b",
    rf"^(?:i|we)(?:(?: \w+)? have|'ve) (?:\w+ly )?(?:no|little|not enough|insufficient) (?:\w+ )?(?:{_FACTS}|{_MEANS})\b",
    rf"^(?:i|we)(?: \w+)? lack (?:\w+ ){{0,3}}{_FACTS}\b",
    rf"^(?:i|we) (?:would )?(?:need|require) (?:more|further|additional) (?:\w+ )?{_FACTS}\b",
    r"^(?:don't|dont|do not|can't|cannot|can not|couldn't|could not|not able to|not possible to|impossible to|unable to|hard to"
    rf"|difficult to) (?:\w+ly )?{_TELL}\b",
    # Nothing is there to tell from.
    rf"\b{_FACTS}\b.{{0,200}}? (?:{_IS_NOT}|{_IS} un)(?: ?\w+){{0,2}} ?{_TOLD}\b",
    rf"\b{_FACTS}\b.{{0,120}}? (?:insufficient|missing|{_DOES_NOT} {_INCLUDE})\b",
    rf"\b(?:text|passage|question|context)\b.{{0,60}}? {_DOES_NOT} {_INCLUDE}\b",
    rf"(?:\b(?:no|not enough|insufficient|lacks|lack of)|n't enough)(?: \w+){{0,3}} {_FACTS}(?<!source)(?<!sources)"
    rf"(?:$| {_ABOUT}\b)",
    rf"\b(?:{_FACTS}|research|verification) (?:is |are )?(?:needed|required)\b|\brequires (?:\w+ )?(?:research|verification)\b",
    r"\b(?:insufficient|not enough|no (?:clear|sufficient)) evidence\b",
    rf"^no (?:\w+ ){{1,4}}{_TOLD}$",
    rf"^no (?:specific|exact|precise|definitive) (?:\w+ ){{1,4}}{_TOLD}\b",
    rf"^there(?: is|'s| are) no (?:specific|exact|precise|definitive|official|reliable) (?:\w+ ){{1,6}}{_TOLD}\b",
    rf"\b(?:more|further|additional|specific) (?:\w+ )?(?:{_FACTS}|research|verification|clarification)\b.{{0,80}}? "
    r"(?:needed|required|necessary)\b",
    rf"\b(?:exact|specific|precise|actual)\b.{{0,250}}? {_IS_NOT}(?: \w+){{0,2}} {_TOLD}\b",
    rf"\b(?:cannot|can't|can not|could not|couldn't)(?: \w+)? be (?:\w+ly )?{_TOLD}\b",
    rf"\b{_IS_NOT} (?:\w+ly )?(?:provided|specified|stated|disclosed|available|known)(?:$| to me\b| {_FROM}\b)",
    rf"\b{_IS_NOT} {_OPENLY} {_TOLD}\b",
    r"\bnot (?:\w+ly )?(?:mentioned|given|stated) in (?:the |this )?(?:question|provided|given|available|text|context|passage)\b",
    rf"^(?:\w+ ){{0,2}}(?:not (?:\w+ly )?{_TOLD}|unavailable)(?:$| {_FROM}\b)",
    rf"\b(?:needs? to|should|must) be (?:\w+ly )?(?:{_SOUGHT}|looked up)\b",
    r"\b(?:will|would) be (?:provided|given|inserted)\b(?! to)",
    rf"^there(?: is|'s) no way (?:to|of) (?:{_TELL}|knowing|telling)\b",
    r"\bit(?: is|'s) (?:not (?:possible|clear|known)|impossible|difficult|hard|unclear|unknown)"
    rf"(?:$| (?:for me )?to (?:\w+ly )?{_TELL}\b| (?:who|what|when|where|which|how|whether|if)\b)",
    rf"\b(?:{_IS}|remains?) (?:\w+ly |still )?{_UNKNOWN}(?:$| to me\b| {_FROM}\b)",
    r"^(?:you (?:will |would |may |might )?(?:need|have) to|you (?:should|can|could|may)|please) "
    r"(?:search|consult|refer|check|specify|provide|research|conduct|look|find (?:this|that) information)\b",
    r"^(?:the answer is )?(?:unknown|not known|unsure|not sure|no idea|no clue|no answer|n/a|unanswerable|undetermined|idk|dunno"
    r"|not applicable|unclear|uncertain|cannot answer|can't answer)$",
    r"^(?:nobody|no one|no-one)(?: \w+)? knows(?: for (?:sure|certain))?$",
    # The same in other tongues.
    r"不知道|不清楚|不确定|不確定|不太清楚|无法(?:确定|回答|提供|核实)|無法(?:確定|回答|提供)|没有(?:相关|足够的)?信息",
    r"わかりません|分かりません|わからない|分からない|知りません|不明です|모르겠|알 수 없|모릅니다",
    r"^(?:je ne sais pas|j'ignore|je ne connais pas|no (?:lo )?sé|desconozco|no tengo información|(?:eu )?não sei|non (?:lo )?so"
    r"|(?:das )?weiss ich (?:leider )?nicht|ich weiss (?:es |das )?(?:leider )?nicht|keine ahnung"
    r"|(?:dat )?weet ik niet|ik weet het niet|jag vet inte|nie wiem|bilmiyorum|(?:я )?не знаю|لا أعرف|لا أعلم|मुझे नहीं पता)(?!\w)",
)
"""What ``default`` stands for in ``entropy.abstention_patterns``: regular expressions, searched in each clause of an answer, its
letters small, its quotes straight, without markup, apologies and what opens it ("Unfortunately,")."""

_OURS = frozenset(PATTERNS)

_BRACKETED = re.compile(r"[\[<{]([^\[\]<>{}]*)[\]>}]")
_ASKED_FOR = _set("answer name names surname surnames day month year date title number doi insert winner")
_ALONE = _set("city country state place location person team university college school author artist value amount")
_FILLING = _set("the a an of in at for your here if known full first last exact specific correct actual final local and s")
_TAGGED = re.compile(r"^\W*[\[<{](?:final )?answer[\]>}]\s*:?\s*(?=\w)|</\w+>", re.IGNORECASE)

_GUESSES = re.compile(
    r"^(?:i(?:'d| would)? (?:\w+ )?(?:think|believe|guess|suspect|assume|say)\b|my (?:best )?guess|perhaps|maybe|probably"
    r"|possibly|likely|(?:around|about|roughly|approximately|circa) (?=\d)"
    r"|(?:the )?(?:most likely|likely|best|probable|correct) )"
    r"|^(?:(?:some|most|many) )?(?:estimates|sources|reports|experts|scholars) (?:suggest|say|indicate|put|believe|estimate)\b"
    r"|^(?!i\b|we\b|it\b).{1,60} (?:likely|probably)\b"
)
_TELLS = re.compile(
    r"^it(?:'s|'d| is| was| has| occurred| happened| took| (?:could|might|may|would) (?:be|have))\b"
    r"(?! (?:not|possible|important|best|always|worth|recommended|essential|advisable|crucial|common)\b)"
    r"|^i(?: do| did)? (?:find|found|know|recall|remember) that (?:he|she|it|they)\b"
)
_KIND = re.compile(r"(?<=\bwhat )\w+|(?<=\bwhich )\w+")
"""What kind of thing was asked for: an answer puts the thing itself there."""
_FOUND = r"i (?:do |did |can )?(?:find|found|know|recall|remember|tell|say)\b"
_FOUND_THAT = re.compile(rf"^{_FOUND}(?: you)? that\b")
_ASKS = re.compile(
    rf"^(?:could|can|would|do) you\b|^if (?!you are)|^(?:(?!{_FOUND})i|we)\b|^(?:please|you)\b"
    r"|^for (?:more|the most|further|the latest)\b|^it(?: is|'s) (?:recommended|best|advisable|important|always|possible)\b"
    r"|^(?:there are|these|this)\b.* sources\b"
)
"""What speaks to the asker instead of answering."""
_STOP_WORDS = _set(
    "a an and are as at be been by did do does for from had has have he her his in is it its of on or she that the their they"
    " this s to was were what when where which who whom whose with how many much year month day date name i find found know can"
    " tell say you information about after before first last"
)
RESTATED = 0.7
"""Share of the question's words that what stands behind an abstention says again, where it answers after all: what was found
out about the subject instead does not (chosen on gen_simpleqa, where an LLM said which answers attempt one; 0.6 to 0.8 do as
well)."""
_WANTS_A_NUMBER = re.compile(
    r"^when\b|\bhow (?:many|much|old|tall|long|far|high|heavy|deep|large|fast)\b"
    r"|\b(?:what|which)(?: \w+,?){0,3} (?:year|date|day|month|age|number|population|percentage)\b"
)
_DISCLAIMS = re.compile(
    r"^(?:i|we)\b.*\b(?:real[- ]time|(?<!my )current|latest|up[- ]to[- ]date|recent|live|training|cut-?off|browse|internet|future"
    r"|(?:medical|legal|financial|professional) advice)\b"
)
"""What a language model says of itself, whatever is asked: it declines only where nothing stands behind it."""
_NUMBERS = re.compile(
    r"\d+|\b(?:january|february|march|april|may|june|july|august|september|october|november|december|spring|summer|autumn|winter"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)days?)\b"
)
_OF_THE_ANSWER = re.compile(
    rf"^(?:i|we)\b|\b(?:exact|specific|precise|actual|{_FACTS}|sources|records|names?|identity|identities|{_UNKNOWN})\b"
)
"""An abstention that may take back what stands before it: the speaker's own, or about what is known."""
FEW = 4
_DOUBT = re.compile(r"\b(?:verify|verified|confirm|confirmed|sure|certain|guarantee|more|further|additional)\b")
_OPENING = re.compile(
    r"^(?:(?:(?:i am|i'm|we are|we're|my) )?(?:very |really |so |deeply )?(?:sorry|apologies|apologize|apologise|afraid)\b"
    r"(?: (?:but|that|for)\b)?|unfortunately|regrettably|sadly|honestly|however|but|though|although|still|that said"
    r"|well|hmm+|oh|u[mh]+|note"
    r"|(?:(?:that's|that is) )?an? (?:good|great|interesting|difficult|hard|tough) (?:one|question)"
    r"|(?:good|great|interesting) question"
    r"|(?:lo siento|désolée?|desculpe|mi dispiace|scusa|es tut mir leid|tut mir leid|leider|helaas|tyvärr|niestety|к сожалению"
    r"|извините|простите|üzgünüm|maalesef|抱歉|对不起|對不起|すみません(?:が)?|申し訳ありません(?:が)?|죄송합니다(?:만)?|죄송하지만)(?!\w)"
    r"|as an? (?:large )?(?:ai|language)\b[^,]*|(?:based on|according to|without|given|after) [^,]*(?=,)|to be honest"
    r"|to my knowledge)\b[,:; ]*"
)
_CLAUSES = re.compile(
    r"(?<!\b[a-z])(?<!\b(?:dr|mr|ms|st|jr|sr|no|vs|mt))(?<!\b(?:mrs|gen|col|rev))(?<!\bprof)[.!?]+(?:\s+|$)|[。\n]+|;"
    r"| \((?=[^()]*\)?\W*$)|,? (?=(?:but|however|though|although)\b)"
    r"|, (?=(?:maybe|perhaps|possibly|probably|around|about|roughly|approximately)\b)"
)
_CONTRAST = re.compile(r"^\W*(?:but|however|though|although|unfortunately)\b|^\W*(?:i|we)\b")
_TITLE = re.compile(r"\b(?:I|We|You|Nobody|Don't|Can't|Cannot|Couldn't) [A-Z][a-z][\w']*(?: [A-Z][\w']*)*")
_QUOTED = re.compile(r'(?<=\S )"[^"]+"|"[^"]+"(?= \S)')


def abstains(answer: str, question: str = "", patterns: Sequence[str] = PATTERNS) -> bool:
    """Whether an answer declines to answer. Silence is none: it says nothing at all.

    Args:
        question: what was asked, where it is known: what is told instead of a number that was asked for is no answer.
        patterns: regular expressions, see ``PATTERNS``.
    """
    declines, asked = _compiled(tuple(patterns)), _folded(question)
    abstained = answered = disclaimed = guessed = False
    told = ""  # since it abstained
    for clause, contrasts in _clauses(answer, question):
        if any(pattern.search(clause) for pattern in declines):
            disclaimed = not answered and _DISCLAIMS.search(clause) is not None
            # Behind an answer, doubts ("though I cannot confirm it") and notes ("(the month is not known)") take nothing back.
            takes_back = contrasts and not guessed and _OF_THE_ANSWER.search(clause) and not _DOUBT.search(clause)
            abstained |= not answered or bool(takes_back)
            answered &= not abstained
        elif not abstained:
            answered, guessed = True, guessed or _GUESSES.match(clause) is not None
        else:
            told = told if _ASKS.match(clause) else f"{told} {clause}"
            if (disclaimed and told) or _answers_after_all(clause, told, asked, contrasts):
                abstained, answered, told = False, True, ""
    return abstained


def _answers_after_all(clause: str, told: str, question: str, contrasts: bool) -> bool:
    """Whether an abstention is taken back: by a guess, or by what tells the thing that was asked for.

    Args:
        told: what stands between the abstention and here, the clause included.
        contrasts: the clause stands against what is before it; a few words that do are the answer ("but Paris").
    """
    if _GUESSES.match(clause) or (contrasts and len(clause.split()) <= FEW and not re.match(r"(?:i|we|you|if)\b", clause)):
        return True
    if _WANTS_A_NUMBER.search(question) and not set(_NUMBERS.findall(clause)) - set(_NUMBERS.findall(question)):
        return False
    if _TELLS.match(clause):
        return True
    asked, said = _stems(_KIND.sub("", question)), _stems(told)
    if not asked:
        return _FOUND_THAT.match(clause) is not None
    return not _ASKS.match(clause) and len(asked & said) >= RESTATED * len(asked) and bool(_stems(clause) - asked)


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


def _clauses(answer: str, question: str) -> list[tuple[str, bool]]:
    """Folded clauses of an answer that say something, and whether each speaks of itself or against what stands before it."""
    text = _TAGGED.sub(" ", answer)
    text = _folded(_BRACKETED.sub(lambda found: "unknown. " if _is_placeholder(found[1], question) else found[0], text))
    text = re.sub(r'["*_\[\]<>{}#]', "", text)
    text = re.sub(r"^\s*(?:(?:final )?answer|a)\s*:\s*", "", text)
    clauses = []
    for part in _CLAUSES.split(text):
        clause, before = part.strip(" ,.:;!?()。"), None
        while clause != before:
            before, clause = clause, _OPENING.sub("", clause).strip(" ,.:;()")
        if clause:
            clauses.append((clause, bool(_CONTRAST.match(part))))
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
