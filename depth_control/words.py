"""Which words of a prompt a small model knows."""

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

SMALL_VOCABULARY = 2000
"""Tokenizers with this many tokens spell every word."""


def unknown_words(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[str]:
    """Words that a model with a small vocabulary was not trained on, in order; they only disturb it.

    Empty for tokenizers of `SMALL_VOCABULARY` or more.
    """
    if len(tokenizer) >= SMALL_VOCABULARY:
        return []
    words = dict.fromkeys(word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
    return [word for word in words if not _knows(tokenizer, word)]


def known_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Whole words of a tokenizer, sorted."""
    entries = (token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>"))
    return sorted(word for word in entries if len(word) > 1 and word.isalpha())


def _knows(tokenizer: PreTrainedTokenizerBase, word: str) -> bool:
    tokens = tokenizer.tokenize(word)
    return len(tokens) == 1 and tokens[0] != tokenizer.unk_token
