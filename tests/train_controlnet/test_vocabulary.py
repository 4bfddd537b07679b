"""The small tokenizer."""

import pytest
from transformers import CLIPTokenizer

from train_controlnet.vocabulary import build_tokenizer, save_and_reload

CAPTIONS = ["oak wood shapes on green grass hills at sunset", "an empty brick room", "a red clay model of the scene"]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(CAPTIONS)


def test_each_word_is_one_token(tokenizer):
    for caption in CAPTIONS:
        pieces = tokenizer(caption).input_ids[1:-1]
        assert len(pieces) == len(caption.split())
        assert tokenizer.decode(pieces).strip() == caption


def test_start_end_and_padding(tokenizer):
    ids = tokenizer([CAPTIONS[0], ""], padding="max_length", truncation=True).input_ids
    assert [len(row) for row in ids] == [32, 32]
    assert all(row[0] == tokenizer.bos_token_id for row in ids)
    assert ids[1][1:] == [tokenizer.eos_token_id] * 31
    assert len(tokenizer(" ".join(CAPTIONS * 9), truncation=True).input_ids) == 32


def test_other_words_fall_apart_into_known_pieces(tokenizer):
    pieces = tokenizer("zebra").input_ids[1:-1]
    assert len(pieces) > 1 and tokenizer.unk_token_id not in pieces[:-1]
    assert tokenizer.decode(pieces).strip() == "zebra"
    assert max(tokenizer("zebra quux 123!").input_ids) < len(tokenizer)
    assert build_tokenizer(["café brick"]).get_vocab() == build_tokenizer(["brick"]).get_vocab()


def test_every_word_the_scenes_can_say_is_one_token():
    materials, kinds = "pink plastic oak checkerboard yellow", "box boxes ox oxes banana bananas anan aaaa aaa shelves"
    words = [*materials.split(), *kinds.split()]
    tokenizer = build_tokenizer([" ".join(words)])
    assert [len(tokenizer(word).input_ids) for word in words] == [3] * len(words)


def test_case_and_commas_do_not_matter(tokenizer):
    assert tokenizer("Red Clay ROOM").input_ids == tokenizer("red clay room").input_ids


def test_building_is_deterministic_and_order_does_not_matter(tokenizer):
    again = build_tokenizer(CAPTIONS[::-1] * 2)
    assert again.get_vocab() == tokenizer.get_vocab()


def test_a_saved_tokenizer_is_a_stock_one(tokenizer, tmp_path):
    reloaded = save_and_reload(tokenizer, tmp_path)
    assert isinstance(reloaded, CLIPTokenizer) and CLIPTokenizer.from_pretrained(tmp_path).model_max_length == 32
    for text in (*CAPTIONS, "", "zebra, at NIGHT"):
        assert reloaded(text, padding="max_length").input_ids == tokenizer(text, padding="max_length").input_ids
