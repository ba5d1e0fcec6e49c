import hashlib
import tracemalloc

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxkit import datasets


def test_a_file_is_mapped_and_split_at_the_fraction(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("0123456789" * 10)
    split = datasets.load_text(path, validation_fraction=0.25)
    assert split.train.text() == ("0123456789" * 10)[:75]
    assert split.validation.text() == ("0123456789" * 10)[75:]
    assert isinstance(split.train.data, np.memmap)
    assert not split.train.data.flags.writeable


def test_zero_fraction_gives_the_whole_file_and_an_empty_validation(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abc")
    split = datasets.load_text(path, validation_fraction=0, minimum_length=3)
    assert (split.train.text(), len(split.validation)) == ("abc", 0)


@hypothesis.given(
    text=st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=4),
    fraction=st.floats(0.05, 0.5),
)
def test_no_split_falls_inside_a_character(tmp_path_factory, text, fraction):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    cut = round(len(text.encode()) * (1 - fraction))
    if not text.encode()[cut:].decode(errors="ignore"):
        # The last character alone is longer than the validation share.
        with pytest.raises(ValueError, match="validation part has 0 of"):
            datasets.load_text(path, validation_fraction=fraction)
        return
    split = datasets.load_text(path, validation_fraction=fraction)
    assert split.train.text() + split.validation.text() == text
    assert 0 <= len(split.train) - cut <= 3


@hypothesis.given(text=st.text(st.characters(codec="utf-8")), size=st.integers(1, 9))
def test_pieces_are_the_text(text, size):
    corpus = datasets.Corpus.from_text(text, "text")
    assert "".join(corpus.pieces(size)) == text
    assert list(corpus.pieces(size))[-1:] != [""]


def test_pieces_end_after_newlines():
    corpus = datasets.Corpus.from_text("one\ntwo\nthree and more\nend", "text")
    *whole, last = corpus.pieces(15)
    assert len(whole) == 2
    assert last == "end"
    assert all(piece.endswith("\n") for piece in whole)


def test_a_folder_is_joined_in_order_of_path_with_newlines_between(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b" / "empty.txt").write_text("")
    (tmp_path / "c.txt").write_text("three")
    (tmp_path / "skipped.md").write_text("not this")
    split = datasets.load_text(tmp_path, validation_fraction=0)
    assert split.train.text() == "one\ntwo\nthree"
    joined = tmp_path / "joined.text"
    joined.write_text("one\ntwo\nthree")
    assert datasets.load_text(joined, validation_fraction=0).train.fingerprint == (
        split.train.fingerprint
    )


def test_fingerprint_is_size_hash_and_range_and_changes_with_one_byte(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x" * 100)
    before = datasets.load_text(path)
    digest = hashlib.sha256(b"x" * 100).hexdigest()
    assert before.train.fingerprint == f"100-{digest}[0:90]"
    assert before.validation.fingerprint == f"100-{digest}[90:100]"
    path.write_text("x" * 99 + "y")
    assert datasets.load_text(path).train.fingerprint != before.train.fingerprint


@pytest.mark.parametrize("files", [1, 2])
def test_a_large_text_is_never_held_in_memory(tmp_path, files):
    for i in range(files):
        (tmp_path / f"{i}.txt").write_bytes(b"All work and no play.\n" * (3 << 20))
    path = tmp_path / "0.txt" if files == 1 else tmp_path
    tracemalloc.start()
    try:
        split = datasets.load_text(path)
        next(datasets.token_batches(split.train.data, sequence_length=512, batch_size=8, seed=0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(split.train) > 59e6 * files
    assert peak < 24e6


@pytest.mark.parametrize("offset", [0, 5, (1 << 22) - 1, (1 << 22) + 3])
def test_the_offset_of_a_bad_byte_is_exact_across_chunks(tmp_path, offset):
    content = bytearray(b"a" * ((1 << 22) + 100))
    content[offset] = 0xFF
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.txt is not UTF-8: .* at byte {offset} \(0xff\)"):
        datasets.load_text(tmp_path / "a.txt")


def test_a_character_across_chunks_is_whole_and_a_cut_one_is_refused(tmp_path):
    start = b"a" * ((1 << 22) - 1)
    (tmp_path / "a.txt").write_bytes(start + "é".encode())
    assert datasets.load_text(tmp_path / "a.txt", validation_fraction=0).train.text()[-1] == "é"
    (tmp_path / "b.txt").write_bytes(start + "é".encode()[:1])
    with pytest.raises(ValueError, match=f"unexpected end of data at byte {len(start)}"):
        datasets.load_text(tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: a text is needed"),
        (b"PK\0\3", "is binary: NUL byte at offset 2"),
        (b"caf\xe9 au lait", r"is not UTF-8: .* at byte 3 \(0xe9\)"),
        (b"short", "shorter than one context: its training part has 4 of 5 bytes, at least 129"),
        (b"x" * 200, "its validation part has 20 of 200 bytes, at least 129"),
    ],
)
def test_bad_content_is_refused_in_one_line_with_the_path(tmp_path, content, message):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        datasets.load_text(path, minimum_length=129)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_path_is_answered_with_the_closest(tmp_path):
    (tmp_path / "shakespeare.txt").write_text("To be")
    with pytest.raises(ValueError, match=r"does not exist: did you mean '.*shakespeare\.txt'\?"):
        datasets.load_text(tmp_path / "shakespear.txt")
    with pytest.raises(ValueError, match=r"/nowhere/a\.txt does not exist$"):
        datasets.load_text(tmp_path / "nowhere" / "a.txt")


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no text: a folder must contain \.txt files"):
        datasets.load_text(tmp_path)


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_fraction_out_of_range_is_refused(tmp_path, fraction):
    with pytest.raises(ValueError, match="validation_fraction must be finite and in"):
        datasets.load_text(tmp_path, validation_fraction=fraction)


def test_real_text_keeps_its_bytes(shared_data):
    path = shared_data("tinyshakespeare") / "input.txt"
    split = datasets.load_text(path)
    assert split.train.data.tobytes() + split.validation.data.tobytes() == path.read_bytes()
    tokenizer = datasets.CharTokenizer.from_corpus(split.train)
    assert tokenizer.vocab_size == 66
    assert tokenizer.decode(datasets.tokenize(split.train, tokenizer)) == split.train.text()
