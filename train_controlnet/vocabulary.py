"""A CLIP tokenizer in which every word of a small vocabulary is one token."""

import json
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

_MOST_MERGES = 1500


def build_tokenizer(captions: list[str], length: int = 32) -> CLIPTokenizer:
    """Learns byte-pair merges until each word of `captions` is one token; other words fall apart into pieces.

    Args:
        captions: the training captions.
        length: the longest prompt in tokens, with start and end.
    """
    words = Counter(word for caption in captions for word in caption.lower().replace(",", " ").split())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) * 2 + _MOST_MERGES,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        min_frequency=1,
        show_progress=False,
    )
    bpe.train_from_iterator(sorted(words), trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in learned["merges"]]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(merge) for merge in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length, pad_token="<|endoftext|>")


def save_and_reload(tokenizer: CLIPTokenizer, folder: Path) -> CLIPTokenizer:
    """Writes the tokenizer and reads it back, so that training uses exactly what inference will."""
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)
