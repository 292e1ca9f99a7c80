"""Words of the bundled world: phrasings, occupations with their synonyms, invented names."""

from __future__ import annotations

import random

PHRASINGS: dict[str, list[str]] = {
    "birthplace": [
        "Where was {entity} born?",
        "In which city was {entity} born?",
        "What is the birthplace of {entity}?",
        "Which city does {entity} come from?",
        "From what town does {entity} come?",
    ],
    "occupation": [
        "What does {entity} do for a living?",
        "What is the occupation of {entity}?",
        "Which job does {entity} have?",
        "What is the profession of {entity}?",
        "As what does {entity} work?",
    ],
    "employer": [
        "Who employs {entity}?",
        "Which company does {entity} work for?",
        "What is the employer of {entity}?",
        "For which firm does {entity} work?",
        "On whose payroll is {entity}?",
    ],
    "birth_year": [
        "When was {entity} born?",
        "In which year was {entity} born?",
        "What is the birth year of {entity}?",
        "Which year saw the birth of {entity}?",
        "During what year was {entity} born?",
    ],
}

# Answers that are true of every value of a relation and so say less than any of them: each value entails them, not the reverse.
VAGUE: dict[str, list[str]] = {
    "birthplace": ["a city", "some town", "somewhere"],
    "occupation": ["a job", "some trade", "something"],
    "employer": ["a company", "some firm", "someone"],
    "birth_year": ["a year", "some year", "long ago"],
}

OCCUPATIONS: list[tuple[str, str]] = [
    ("physician", "medical doctor"), ("lawyer", "attorney"), ("teacher", "schoolteacher"), ("farmer", "agriculturist"),
    ("sailor", "mariner"), ("writer", "author"), ("policeman", "constable"), ("firefighter", "fireman"),
    ("shopkeeper", "storekeeper"), ("tailor", "clothier"), ("barber", "hairdresser"), ("waiter", "server"),
    ("cook", "chef"), ("undertaker", "mortician"), ("locksmith", "keymaker"), ("shoemaker", "cobbler"),
    ("carpenter", "joiner"), ("bricklayer", "mason"), ("blacksmith", "ironsmith"), ("optician", "spectacle maker"),
    ("pharmacist", "druggist"), ("dentist", "tooth doctor"), ("veterinarian", "animal doctor"), ("nurse", "ward sister"),
    ("midwife", "birth attendant"), ("judge", "magistrate"), ("priest", "clergyman"), ("soldier", "infantryman"),
    ("pilot", "aviator"), ("driver", "chauffeur"), ("miner", "collier"), ("fisherman", "angler"),
    ("hunter", "trapper"), ("woodcutter", "lumberjack"), ("gardener", "horticulturist"), ("beekeeper", "apiarist"),
    ("winemaker", "vintner"), ("brewer", "beer maker"), ("baker", "bread maker"), ("butcher", "meat cutter"),
    ("cleaner", "janitor"), ("porter", "bellhop"), ("librarian", "book keeper"), ("bookseller", "bibliopole"),
    ("journalist", "reporter"), ("editor", "redactor"), ("translator", "interpreter"), ("musician", "instrumentalist"),
    ("singer", "vocalist"), ("dancer", "ballerina"), ("actor", "thespian"), ("painter", "limner"),
    ("sculptor", "statue maker"), ("architect", "building designer"), ("astronomer", "stargazer"), ("statistician", "data analyst"),
    ("accountant", "auditor"), ("banker", "financier"), ("broker", "stock trader"), ("thief", "burglar"),
]  # fmt: skip

_ONSETS = [
    "b",
    "br",
    "c",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pr",
    "qu",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_NUCLEI = ["a", "e", "i", "o", "u", "ai", "ea", "ou"]
_CODAS = ["l", "m", "n", "r", "s", "x", "nd", "rk", "sh", "th"]

_TENS = {1: "ten", 2: "twenty", 3: "thirty", 4: "forty", 5: "fifty", 6: "sixty"}
_UNITS = ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]


def invented_words(n: int, syllables: tuple[int, int], seed: int, avoid: set[str] | None = None) -> list[str]:
    """``n`` distinct capitalised words of ``syllables`` (fewest, most) syllables, none of them in ``avoid``."""
    rng = random.Random(seed)
    words: dict[str, None] = {}
    taken = set(avoid or ())
    while len(words) < n:
        count = rng.randint(*syllables)
        word = "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) for _ in range(count)) + rng.choice(_CODAS)
        word = word.capitalize()
        if word not in taken:
            words.setdefault(word)
    return list(words)


def spelled_year(year: int) -> str:
    """A year of 1910-1969 in words: 1931 is ``nineteen thirty-one``."""
    tens, units = divmod(year - 1900, 10)
    if tens == 1:
        return f"nineteen {_TEENS[units]}"
    return f"nineteen {_TENS[tens]}" + (f"-{_UNITS[units]}" if units else "")
