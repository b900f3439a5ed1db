"""Sentences about films, books and meals made by a small grammar, each with its sentiment; always the same.

No single word gives the sentiment away: a good word may be negated, or be what was expected and not found.
"""

import random
from collections.abc import Iterator

SEED = 0
SENTENCES = 1_500  # drawn; copies are left out later
NEGATED = 0.15  # chance that a clause says its opposite with the words of the other side
CONTRASTED = 0.2  # chance that an expectation of the other sentiment stands before the clause
WORDS = {
    "positive": ("good", "lovely", "funny", "clever", "moving", "fresh", "charming", "rich"),
    "negative": ("bad", "dull", "clumsy", "stale", "awful", "weak", "tedious", "poor"),
}
SUBJECTS = {
    "film": ("the film", "the plot", "the acting", "the ending", "the music", "this story"),
    "book": ("the book", "the first chapter", "the style", "her new novel", "the translation"),
    "meal": ("the meal", "the soup", "the service", "our dinner", "the dessert"),
}
VERBS = ("was", "seemed", "felt", "turned out")
DEGREES = ("", "", "very", "rather", "truly", "a bit")
PLACES = ("", "", "last night", "to me", "in the end", "from start to finish")
OTHER = {"positive": "negative", "negative": "positive"}


def templates() -> Iterator[tuple[str, str]]:
    """(sentence, "negative" or "positive"), both equally often."""
    chance = random.Random(SEED)
    for number in range(SENTENCES):
        sentiment = ("negative", "positive")[number % 2]
        subject = chance.choice(SUBJECTS[chance.choice(sorted(SUBJECTS))])
        expected = ""
        if chance.random() < CONTRASTED:
            expected = f"I expected something {chance.choice(WORDS[OTHER[sentiment]])} , but "
        negated = chance.random() < NEGATED
        word = chance.choice(WORDS[OTHER[sentiment] if negated else sentiment])
        words = [subject, chance.choice(VERBS), "not" if negated else "", chance.choice(DEGREES), word]
        clause = " ".join(part for part in (*words, chance.choice(PLACES)) if part)
        sentence = f"{expected}{clause} ."
        yield sentence[0].upper() + sentence[1:], sentiment
