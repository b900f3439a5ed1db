"""Short names of trials: what varies among them, in the letters of the field."""

from collections.abc import Mapping, Sequence
from typing import Any


def in_short(config: Any, varying: Sequence[str], letters: Mapping[str, str], *words: str) -> str:
    """The words, then of each varying field that has letters these and its value, in the order of the letters.

    Empty letters leave the value alone, as it says what it is of; a seed is written "s0".

    >>> from trainables.toys import Config
    >>> in_short(Config(), ["learning_rate", "seed"], {"learning_rate": "lr", "noise": "eta", "seed": "s"}, "bowl")
    'bowl lr=0.1 s0'
    """
    named = [*words]
    for name in [name for name in letters if name in varying]:
        value = getattr(config, name)
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        joined = "" if name == "seed" or not letters[name] else "="
        named.append(f"{letters[name]}{joined}{text}")
    return " ".join(named)
