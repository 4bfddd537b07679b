"""A CLIP tokenizer in which every word of a small vocabulary is one token."""

from pathlib import Path

from transformers import CLIPTokenizer

_CHARACTERS = [chr(code) for code in range(33, 127)]


def build_tokenizer(captions: list[str], length: int = 32) -> CLIPTokenizer:
    """Makes byte-pair merges until each word of `captions` is one token; other words fall apart into pieces.

    The same set of words gives the same token numbers (trainers of byte-pair encodings break ties at random).

    Args:
        captions: the training captions.
        length: the longest prompt in tokens, with start and end.
    """
    words = {word for caption in captions for word in caption.lower().replace(",", " ").split()}
    ranks: dict[tuple[str, str], int] = {}
    for word in sorted(filter(str.isascii, words)):
        # Merges of words that came before come first, so those words stay whole.
        while len(pieces := _split(word, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    tokens = [
        *_CHARACTERS,
        *(c + "</w>" for c in _CHARACTERS),
        *map("".join, ranks),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(ranks), model_max_length=length, pad_token="<|endoftext|>")


def _split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """The pieces of a word: of all neighbours that may merge, those of the lowest rank do, until none are left."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while candidates := [pair for pair in zip(pieces, pieces[1:], strict=False) if pair in ranks]:
        best, merged = min(candidates, key=ranks.__getitem__), []
        for piece in pieces:
            if merged and (merged[-1], piece) == best:
                merged[-1] += piece
            else:
                merged.append(piece)
        pieces = merged
    return pieces


def save_and_reload(tokenizer: CLIPTokenizer, folder: Path) -> CLIPTokenizer:
    """Writes the tokenizer and reads it back, so that training uses exactly what inference will."""
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
