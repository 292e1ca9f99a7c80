"""Whether a judge can read the pool: one trained on English calls everything in another language the same, or different.

Both sides are told only where they are clear. A judge's model is English by its name, or by its card; a pool is in another
language where most of its letters are of another script, or where its words are often another language's commonest, and hardly
ever English's.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import yaml

from ka2l_ray.config import JudgeSettings
from ka2l_ray.errors import UserError
from ka2l_ray.semantics.judges import encoder_key

ENOUGH_LETTERS = 20
ENOUGH_WORDS = 40
QUESTIONS_READ = 500

ENGLISH = re.compile(
    r"bundled:judge|deberta.*mnli.*|(roberta|bart)-(base|large)-mnli|nli-(mini|distil|deberta|roberta|mpnet).*"
    r"|all-(minilm|mpnet|distilroberta|roberta).*|(stsb|quora)-(distil)?(roberta|tinybert).*"
)
"""Names, in lower case, of judges' models that were trained on English alone."""

SCRIPTS = {
    "CJK": "Chinese or Japanese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "CYRILLIC": "a language in Cyrillic script",
    "ARABIC": "a language in Arabic script",
    "DEVANAGARI": "a language in Devanagari script",
}

# The commonest words of questions, but for those that English writes alike.
WORDS = {
    "English": "the of what is in was which who did to how and does for by are many where when were from with it that",
    "Spanish": "el la los las qué que de del es en cuál quién cómo dónde cuándo fue una un por se y para con su al",
    "French": "le la les des du quel quelle qui est en où quand comment une un et dans pour dont ont il elle été au aux",
    "German": "der die das den dem ist wer wie wo wann welche welcher welches und ein eine im von zu wurde hat auf für mit wird",
    "Italian": "il lo la gli le di del della che chi è quale dove quando come un una nel nella per con sono si ha stato",
    "Portuguese": "o os as da do das dos qual quem é em onde quando como um uma no na por foi para com se ao",
    "Dutch": "de het een van wie wat waar wanneer hoe welke en voor met werd zijn heeft dat er op naar te",
    "Polish": "kto co gdzie kiedy jak jaki jaka jakie który która które jest się na i z w do był była było od ile",
    "Swedish": "vad vem var när hur vilken vilket och är det en ett som på av för till med den har i blev",
    "Czech": "kdo co kde kdy jak jaký jaká který která které je se v na z do ve byl bylo byla kolik jsou pro",
    "Hungarian": "ki mi mikor hol hogyan melyik mely milyen a az és volt van hány egy nevű hogy ban ben meg",
    "Romanian": "cine ce unde când cum care este în de la și a fost un o din cu pe pentru câte cât se al",
    "Danish": "hvem hvad hvor hvornår hvordan hvilken hvilket er og det en et som på af for til med den har i blev var",
    "Norwegian": "hvem hva hvor når hvordan hvilken hvilket er og det en et som på av for til med den har i ble var",
    "Finnish": "kuka mikä missä milloin miten mitä on ja oli ovat kuinka monta ei se että minkä missä kuka minä vuonna",
    "Catalan": "qui què on quan com quin quina és el la els les de del dels va i en un una per amb al que",
    "Swahili": "nani nini wapi lini vipi gani ni ya wa na kwa katika za la ilikuwa alikuwa mwaka ngapi cha",
    "Turkish": "ne kim nerede hangi nasıl ve bir bu kaç mi mı olan olarak ile için kimdir nedir neresidir",  # noqa: RUF001
    "Vietnamese": "là của ai gì nào ở đâu khi và trong có năm được những các một người",
    "Indonesian": "apa siapa di mana kapan bagaimana yang dan adalah dari ini itu untuk dengan pada berapa manakah",
}
COMMONEST = {language: frozenset(words.split()) for language, words in WORDS.items()}


def check_language(settings: JudgeSettings, section: str, questions: Iterable[str], where: str) -> None:
    """Refuse a judge for English on questions that clearly are not.

    Args:
        section: of the configuration, for the message.
        questions: the first hundreds are read.
        where: the file that they stand in.

    Raises:
        UserError: names the judge's model, the language, and what to set.
    """
    key = encoder_key(settings)
    path = None if key is None else getattr(settings, key)
    if path is None or not is_english(path):
        return
    language = foreign(text for text, _ in zip(questions, range(QUESTIONS_READ), strict=False))
    if language is not None:
        raise UserError(
            f"{section}.{key}: {path} reads English, and the questions of {where} are in {language}; "
            f"give a model that reads it, or set {section}.judge to exact or llm"
        )


def is_english(path: str) -> bool:
    """Whether a judge's model is known to read no other language: by its name, or by the ``language`` of its card."""
    if ENGLISH.fullmatch(path.rstrip("/").rsplit("/", 1)[-1].lower()):
        return True
    card = Path(path) / "README.md"
    if not card.is_file():
        return False
    found = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    if found is None:
        return False
    try:
        languages = (yaml.safe_load(found[1]) or {}).get("language")
    except (yaml.YAMLError, AttributeError):  # a card is prose: one that is not YAML says nothing
        return False
    return languages in ("en", "english", ["en"], ["english"])


def foreign(texts: Iterable[str]) -> str | None:
    """The language that these texts are in where it clearly is not English, else None."""
    joined = " ".join(texts)
    scripts = Counter(_script(c) for c in joined if c.isalpha())
    letters = sum(scripts.values())
    if letters < ENOUGH_LETTERS:
        return None
    if 2 * scripts["LATIN"] < letters:
        if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * letters:
            return "Japanese"
        script = scripts.most_common(1)[0][0]
        return SCRIPTS.get(script, f"{script.capitalize()} script")
    words = re.findall(r"[^\W\d_]+", joined.lower())
    if len(words) < ENOUGH_WORDS:
        return None
    shares = {language: sum(word in common for word in words) / len(words) for language, common in COMMONEST.items()}
    english = shares.pop("English")
    language, share = max(shares.items(), key=lambda each: each[1])
    return language if english < 0.1 and share > 0.15 and share > 3 * english else None


def _script(character: str) -> str:
    return unicodedata.name(character, "?").split()[0]
