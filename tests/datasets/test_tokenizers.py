import json
import sys

import hypothesis
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies as st

from jaxkit import datasets
from jaxkit.datasets import encoding

TEXT = st.text(st.characters(codec="utf-8"))
CORPUS = datasets.Corpus.from_text("The quick brown fox — déjà vu.\n" * 40, "foxes")


@pytest.fixture(scope="module")
def json_path(tmp_path_factory):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>"],
        show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(CORPUS.pieces(), trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(params=["bytes", "characters", "json"])
def tokenizer(request, json_path):
    return {
        "bytes": datasets.ByteTokenizer,
        "characters": lambda: datasets.CharTokenizer.from_corpus(CORPUS, unknown="replace"),
        "json": lambda: datasets.JsonTokenizer(json_path),
    }[request.param]()


def test_every_tokenizer_satisfies_the_protocol_and_restores_the_corpus(tokenizer):
    assert isinstance(tokenizer, datasets.Tokenizer)
    ids = tokenizer.encode(CORPUS.text())
    assert ids.dtype == np.min_scalar_type(tokenizer.vocab_size - 1)
    assert ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == CORPUS.text()
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode(np.zeros(0, np.int32)) == ""


def test_every_tokenizer_is_rebuilt_from_its_json_config(tokenizer):
    config = json.loads(json.dumps(tokenizer.to_config()))
    again = datasets.tokenizer_from_config(config)
    assert type(again) is type(tokenizer)
    assert again.vocab_size == tokenizer.vocab_size
    np.testing.assert_array_equal(again.encode("quick — fox"), tokenizer.encode("quick — fox"))
    assert again.to_config() == tokenizer.to_config()


def test_every_tokenizer_refuses_ids_out_of_range(tokenizer, bad_input):
    with pytest.raises(
        ValueError,
        match=rf"in \[0, {tokenizer.vocab_size}\), got {tokenizer.vocab_size} at pos.* 1",
    ):
        tokenizer.decode(np.array([0, tokenizer.vocab_size]))
    with pytest.raises(ValueError, match="got -1 at position 0"):
        tokenizer.decode(np.array([-1]))
    with pytest.raises(TypeError, match="ids must be a flat integer array, got float64"):
        tokenizer.decode(np.zeros(3))


@hypothesis.given(TEXT)
def test_bytes_decode_to_the_text(text):
    tokenizer = datasets.ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.tobytes() == text.encode()
    assert tokenizer.decode(ids) == text


def test_bytes_that_are_no_utf8_decode_to_replacements():
    assert datasets.ByteTokenizer().decode(np.array([104, 255, 105])) == "h\ufffdi"


@hypothesis.given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=200))
def test_characters_decode_to_the_text_they_were_learnt_from(text):
    tokenizer = datasets.CharTokenizer.from_corpus(datasets.Corpus.from_text(text, "text"))
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.count_replaced(ids) == 0
    assert tokenizer.vocab_size == len(set(text)) + 1


@hypothesis.given(TEXT)
def test_replaced_characters_are_counted_and_the_others_kept(text):
    tokenizer = datasets.CharTokenizer("abcdefgh ", unknown="replace")
    ids = tokenizer.encode(text)
    assert tokenizer.count_replaced(ids) == sum(c not in "abcdefgh " for c in text)
    assert tokenizer.decode(ids) == "".join(c if c in "abcdefgh " else "\ufffd" for c in text)


def test_strict_characters_refuse_an_unknown_one_with_its_place():
    with pytest.raises(
        ValueError, match=r"character 'z' at position 2 is not one of the 2 .*2 such"
    ):
        datasets.CharTokenizer("ab").encode("abzz")


def test_skipped_characters_are_left_out():
    tokenizer = datasets.CharTokenizer("abc", unknown="skip")
    assert tokenizer.decode(tokenizer.encode("a\r\nb\N{CJK UNIFIED IDEOGRAPH-4E00}c")) == "abc"
    corpus = datasets.Corpus.from_text("xax" * 9, "letters")
    assert datasets.tokenize(corpus, tokenizer).tolist() == [1] * 9


def test_too_many_characters_are_refused_or_the_most_frequent_kept():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 300))) + "aab"
    corpus = datasets.Corpus.from_text(text + text[100:], "hanzi")
    with pytest.raises(ValueError, match=r"hanzi has 302 different characters.*holds 255"):
        datasets.CharTokenizer.from_corpus(corpus)
    tokenizer = datasets.CharTokenizer.from_corpus(corpus, unknown="replace")
    assert tokenizer.vocab_size == 256
    assert set(text[100:]) <= set(tokenizer.characters)
    assert tokenizer.encode(text).dtype == np.uint8


@pytest.mark.parametrize("characters", ["", "aa", "".join(map(chr, range(256)))])
def test_an_impossible_alphabet_is_refused(characters):
    with pytest.raises(ValueError, match="characters must be 1 to 255 different ones"):
        datasets.CharTokenizer(characters)


def test_an_empty_corpus_has_no_alphabet():
    with pytest.raises(ValueError, match="characters must be 1 to 255"):
        datasets.CharTokenizer.from_corpus(datasets.Corpus.from_text("", "nothing"))


def test_json_settings_for_single_texts_do_not_touch_a_stream(json_path):
    ids = datasets.JsonTokenizer(json_path).encode("The quick brown fox " * 10)
    own = tokenizers.Tokenizer.from_file(str(json_path))
    assert own.encode("The quick brown fox " * 10).tokens[0] == "<s>"
    assert len(own.encode("The quick brown fox " * 10).ids) == 16  # truncated, then padded
    assert own.token_to_id("<s>") not in ids
    assert len(ids) > 16


def test_json_vocabulary_with_gaps_is_bounded_by_its_largest_id(tmp_path):
    model = tokenizers.models.WordLevel({"a": 0, "b": 999}, unk_token="a")
    tokenizers.Tokenizer(model).save(str(tmp_path / "t.json"))
    tokenizer = datasets.JsonTokenizer(tmp_path / "t.json")
    assert (tokenizer.vocab_size, tokenizer.encode("b").tolist()) == (1000, [999])
    assert tokenizer.encode("b").dtype == np.uint16


def test_json_file_that_is_missing_wrong_or_changed_is_refused(tmp_path, json_path):
    with pytest.raises(ValueError, match=r"tokenizer file .*none\.json does not exist"):
        datasets.JsonTokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"bad\.json is not a tokenizer JSON file"):
        datasets.JsonTokenizer(tmp_path / "bad.json")
    changed = {**datasets.JsonTokenizer(json_path).to_config(), "fingerprint": "0" * 64}
    with pytest.raises(ValueError, match="has changed: its SHA-256 was 0000"):
        datasets.tokenizer_from_config(changed)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "byte"}, "did you mean 'bytes'"),
        ({}, "kind must be one of 'bytes', 'characters', 'ids', 'json', got 'None'"),
        ({"kind": ["bytes"]}, "kind must be one of 'bytes', 'characters', 'ids', 'json', got "),
        ({"kind": "characters"}, r"at fault: \['characters', 'unknown'\]"),
        ({"kind": "characters", "characters": 3, "unknown": "skip"}, r"fault: \['characters'\]"),
        ({"kind": "characters", "characters": "ab", "unknown": "none"}, "unknown must be"),
        ({"kind": "json", "path": None, "fingerprint": "0"}, r"at fault: \['path'\]"),
        ({"kind": "ids", "vocab_size": 2.5}, r"at fault: \['vocab_size'\]"),
        ({"kind": "bytes", "size": 3}, r"at fault: \['size'\]"),
    ],
)
def test_a_bad_config_is_refused(bad_input, config, message):
    with pytest.raises(ValueError, match=message):
        datasets.tokenizer_from_config(config)


def test_without_the_package_the_extra_is_named(json_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxkit\[datasets\]'"):
        datasets.JsonTokenizer(json_path)


def test_byte_tokens_are_the_corpus_itself(tmp_path):
    assert datasets.tokenize(CORPUS, datasets.ByteTokenizer(), tmp_path) is CORPUS.data
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["memory", "temporary file", "cache"])
def test_tokens_of_a_corpus_are_those_of_its_text(tokenizer, tmp_path, monkeypatch, place):
    if place == "temporary file":
        monkeypatch.setattr(encoding, "_IN_MEMORY", 0)
    cuts = datasets.Corpus.cuts
    monkeypatch.setattr(datasets.Corpus, "cuts", lambda self, start: cuts(self, 100, start))
    tokens = datasets.tokenize(CORPUS, tokenizer, tmp_path if place == "cache" else None)
    np.testing.assert_array_equal(tokens, tokenizer.encode(CORPUS.text()))
    assert tokens.dtype == np.min_scalar_type(tokenizer.vocab_size - 1)
    if not isinstance(tokenizer, datasets.ByteTokenizer):
        assert isinstance(tokens, np.memmap) == (place != "memory")


def test_the_cache_is_reused_keyed_by_content_and_repaired(tmp_path, monkeypatch):
    tokenizer = datasets.CharTokenizer.from_corpus(CORPUS, unknown="replace")
    first = np.array(datasets.tokenize(CORPUS, tokenizer, tmp_path))
    (path,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "encode", lambda text: pytest.fail("encoded again"))
        np.testing.assert_array_equal(datasets.tokenize(CORPUS, tokenizer, tmp_path), first)
    path.write_bytes(path.read_bytes()[:200])
    np.testing.assert_array_equal(datasets.tokenize(CORPUS, tokenizer, tmp_path), first)
    datasets.tokenize(CORPUS, datasets.CharTokenizer("abc", unknown="replace"), tmp_path)
    datasets.tokenize(datasets.Corpus.from_text("fox", "fox"), tokenizer, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_failed_encoding_leaves_no_file_and_names_the_corpus(tmp_path):
    with pytest.raises(ValueError, match=r"^foxes: character"):
        datasets.tokenize(CORPUS, datasets.CharTokenizer("Theq uick"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "dtype"), [("a.bin", "uint16"), ("a.bin", "uint32"), ("a.npy", "uint8")]
)
def test_packed_tokens_are_mapped(tmp_path, name, dtype):
    tokens = np.arange(200).astype(dtype)
    if name == "a.npy":
        np.save(tmp_path / name, tokens)
    else:
        tokens.tofile(tmp_path / name)
    found = datasets.load_tokens(
        tmp_path / name, vocab_size=200, **({} if name == "a.npy" else {"dtype": dtype})
    )
    np.testing.assert_array_equal(found, tokens, strict=True)
    assert isinstance(found, np.memmap)
    with pytest.raises(ValueError, match="ids below vocab_size=199, got 199 at token 199"):
        datasets.load_tokens(tmp_path / name, vocab_size=199, dtype=dtype)
    tokenizer = datasets.tokenizer_from_config(datasets.IdTokenizer(200).to_config())
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(found)), tokens)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"odd", "must hold uint16 of 2 bytes each, got 3 bytes"),
        ("a.bin", b"", "got 0 bytes"),
        ("a.npy", b"x", "cannot be read as an array"),
        # A header of 2^64 - 1 times two tokens, which no file holds.
        (
            "a.npy",
            b"\x93NUMPY\1\0\x46\0{'descr': '<u2', 'fortran_order': False, "
            b"'shape': (18446744073709551615, 2)}\n",
            "cannot be read as an array",
        ),
    ],
)
def test_files_that_hold_no_tokens_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        datasets.load_tokens(tmp_path / name, vocab_size=9)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(ValueError, match="flat array of unsigned integers, got float64"):
        datasets.load_tokens(tmp_path / "b.npy", vocab_size=9)
    with pytest.raises(ValueError, match="text must be ids below 9, got '9'"):
        datasets.IdTokenizer(9).encode("8 9")
