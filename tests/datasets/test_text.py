import contextlib
import functools
import gzip
import hashlib
import json
import logging
import sys
import tracemalloc

import hypothesis
import numpy as np
import pytest
import zstandard
from hypothesis import strategies as st

from jaxkit import datasets
from jaxkit.datasets import documents, encoding, mapped


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
    with pytest.raises(ValueError, match=r"a folder must contain files ending in .txt"):
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


# JSON lines, compression, Parquet, and what else people have.

ROWS = [
    {"text": "one\ntwo", "meta": {"set": "Github"}},
    {"text": "drei \N{SNOWMAN}\r\n", "meta": {"set": "Books"}},
    {"text": "", "meta": {"set": "Github"}},
    {"text": "four", "meta": {"set": "Github"}, "a.b": 1},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def whole(path, **options):
    return datasets.load_text(path, validation_fraction=0, **options).train.text()


def zst(content, frames=2):
    cut = len(content) // frames
    parts = [content[i : i + cut] for i in range(0, len(content), cut)]
    return b"".join(map(zstandard.compress, parts))


@pytest.mark.parametrize(
    ("ending", "pack"),
    [(".jsonl", bytes), (".jsonl.gz", gzip.compress), (".JSONL.zst", zst), (".ndjson", bytes)],
)
@pytest.mark.parametrize("cached", [False, True])
def test_json_lines_are_the_same_text_however_they_are_packed(tmp_path, ending, pack, cached):
    path = tmp_path / f"a{ending}"
    path.write_bytes(pack(b"\xef\xbb\xbf" + LINES))
    options = {"cache_dir": tmp_path / "cache" if cached else None}
    assert whole(path, **options) == "one\ntwo\n\ndrei \N{SNOWMAN}\n\nfour"
    assert whole(path, where=["meta.set=Github"], **options) == "one\ntwo\n\nfour"
    assert whole(path, where=["meta.set=Github", "a.b=1"], **options) == "four"
    assert (
        whole(path, field="meta.set", separator="<>", **options) == "Github<>Books<>Github<>Github"
    )
    assert "drei \N{SNOWMAN}\r\n" in whole(path, newlines="keep", **options)


def test_parquet_is_read_as_rows(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"text": [r["text"] for r in ROWS]}), tmp_path / "a.parquet")
    assert whole(tmp_path / "a.parquet") == "one\ntwo\n\ndrei \N{SNOWMAN}\n\nfour"


def test_without_a_reader_of_parquet_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"pip install 'jaxkit\[parquet\]'"):
        whole(tmp_path / "a.parquet")


def test_several_files_patterns_suffixes_and_compressed_text(tmp_path):
    (tmp_path / "b.jsonl").write_bytes(LINES)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"alpha\r\nbeta"))
    (tmp_path / "c.py").write_text("code\n")
    (tmp_path / "d.md").write_text("\ufeffprose")
    assert whole(tmp_path, where=["a.b=1"]) == "alpha\nbeta\n\nfour"
    assert whole(tmp_path, suffixes=[".py", ".md"]) == "code\nprose"
    assert whole(str(tmp_path / "[ac].*")) == "alpha\nbeta\ncode\n"
    assert whole([tmp_path / "d.md", tmp_path / "c.py"]) == "prose\ncode\n"
    with pytest.raises(ValueError, match=r"x\*\.txt matches no file"):
        whole(str(tmp_path / "x*.txt"))


def test_a_byte_order_mark_is_no_letter_and_windows_line_ends_are_newlines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfabc\n")
    corpus = datasets.load_text(path, validation_fraction=0).train
    assert corpus.text() == "abc\n"
    assert isinstance(corpus.data, np.memmap)
    path.write_bytes(b"a\r\nb\rc\r\n" + b"x" * ((1 << 22) - 9) + b"\r\ny\r")
    assert whole(path) == "a\nb\rc\n" + "x" * ((1 << 22) - 9) + "\ny\r"
    assert whole(path, newlines="keep").encode() == path.read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not a JSON object"),
        (b"[1]", "field 'text' must be a string, got no such field"),
        (b'{"txt": ""}', r"no such field among \['txt'\]"),
        (b'{"text": 3}', "must be a string, got int"),
        (b'{"text": "\\ud800"}', "surrogates not allowed"),
        (b"[" * 100_000, "not a JSON object"),
        (b"\xff", "not a JSON object"),
    ],
)
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path, caplog, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "too"}')
    with pytest.raises(ValueError, match=rf"a\.jsonl:3: .*{message}"):
        whole(path)
    with caplog.at_level(logging.INFO, "jaxkit.datasets"):
        assert whole(path, broken="skip") == "good\n\ntoo"
    assert "left out 1 documents" in caplog.text


def test_binary_files_among_sources_are_skipped_and_counted(tmp_path, caplog):
    (tmp_path / "a.py").write_text("code\n")
    (tmp_path / "b.py").write_bytes(b"PK\0")
    with pytest.raises(ValueError, match=r"b\.py is binary"):
        whole(tmp_path, suffixes=[".py"])
    with caplog.at_level(logging.INFO, "jaxkit.datasets"):
        assert whole(tmp_path, suffixes=[".py"], broken="skip") == "code\n"
    assert "left out 1 documents" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(LINES)[:-5], "is truncated or damaged gzip"),
        ("a.jsonl.zst", zst(LINES)[:-5], "is truncated zstd"),
        ("a.jsonl.zst", b"no zstd at all", "is damaged zstd"),
        ("a.jsonl", b"\n", "is empty"),
        ("a.jsonl.zst", b"", "is empty"),
    ],
)
@pytest.mark.parametrize("cached", [False, True])
def test_packed_files_that_are_cut_or_empty_are_refused(tmp_path, name, content, message, cached):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        whole(tmp_path / name, cache_dir=tmp_path / "cache" if cached else None)


def test_conditions_must_be_equations(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINES)
    with pytest.raises(ValueError, match="where must be field=value, got 'meta'"):
        whole(tmp_path / "a.jsonl", where=["meta"])


class Killed(BaseException):
    """Stands for a process that ends anywhere."""


@pytest.mark.parametrize("stop", [0, 1, 7, 30])
def test_writing_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, stop):
    for part in range(3):
        rows = [{"text": f"document {part}.{i}\n" * (i % 4)} for i in range(20)]
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (tmp_path / f"{part}.jsonl.zst").write_bytes(zst(content))
    pattern, expected = str(tmp_path / "*.zst"), whole(str(tmp_path / "*.zst"))
    options = {"cache_dir": tmp_path / "cache"}
    grow = functools.partial(mapped.grow_mapped, save_every=100)
    monkeypatch.setattr(mapped, "grow_mapped", grow)
    monkeypatch.setattr(datasets.Corpus, "cuts", functools.partialmethod(datasets.Corpus.cuts, 64))
    read, begun = documents.documents, []

    def interrupted(files, options, start):
        begun.append(start)
        for count, found in enumerate(read(files, options, start)):
            if count == stop and len(begun) == 1:
                raise Killed
            yield found

    monkeypatch.setattr(documents, "documents", interrupted)
    with pytest.raises(Killed):
        whole(pattern, **options)
    assert whole(pattern, **options) == expected
    assert (list(begun[1]) > list(begun[0])) == (stop >= 7)
    assert whole(pattern, **options) == expected
    assert len(begun) == 2

    tokenizer = datasets.ByteTokenizer()
    monkeypatch.setattr(encoding, "ByteTokenizer", type(None))
    corpus, encode = datasets.load_text(pattern, **options).train, tokenizer.encode
    calls = []

    def fails_once(piece):
        calls.append(piece)
        if len(calls) == stop + 1:
            raise Killed
        return encode(piece)

    monkeypatch.setattr(tokenizer, "encode", fails_once)
    with contextlib.suppress(Killed):
        datasets.tokenize(corpus, tokenizer, tmp_path / "cache")
    tokens = datasets.tokenize(corpus, tokenizer, tmp_path / "cache")
    assert tokens.tobytes().decode() == corpus.text()
    assert len(calls) <= len(list(corpus.cuts())) + 4
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".npy", ".npy"]


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
def test_forgotten_pages_lose_nothing(tmp_path, mode):
    np.save(tmp_path / "a.npy", np.arange(1 << 16))
    array = np.load(tmp_path / "a.npy", mmap_mode=mode)
    if mode != "r":
        array[5] = -1
    before = array.copy()
    mapped.forget_pages(array[3:])
    np.testing.assert_array_equal(array, before)
