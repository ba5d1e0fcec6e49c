"""Files are replaced whole, or not at all; what was stored is read as input."""

import dataclasses
import json
import re
from typing import Literal

import pytest

from jaxkit import files


def test_who_reads_the_old_file_goes_on_reading_it(tmp_path):
    path = files.write_atomically(tmp_path / "a.txt", "old")
    with path.open() as reader:
        files.write_atomically(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_halfway_leaves_the_old_file_and_nothing_else(tmp_path):
    path = files.write_atomically(tmp_path / "a.txt", "old")

    def write():
        with files.atomic_writer(path) as stream:
            stream.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["a.txt"]


@dataclasses.dataclass(frozen=True)
class Part:
    rate: float
    shape: Literal["flat", "round"] = "flat"


@dataclasses.dataclass(frozen=True)
class Stored:
    steps: int
    name: str
    part: Part
    limit: int | None = None
    sizes: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps must be positive, got {self.steps}")


GOOD = {"steps": 3, "name": "a", "part": {"rate": 1, "shape": "flat"}, "limit": None, "sizes": [1]}


def read(tmp_path, fields):
    text = fields if isinstance(fields, str | bytes) else json.dumps(fields, indent=2)
    return files.read_record(files.write_atomically(tmp_path / "a.json", text), Stored)


def test_a_record_is_read_as_it_was_written(tmp_path):
    assert dataclasses.asdict(read(tmp_path, GOOD)) == GOOD
    assert read(tmp_path, {**GOOD, "steps": 3.0}).steps == 3
    assert read(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode()).name == "a"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stpes": 3}, "a.json:12: stpes is no field of a Stored: did you mean 'steps'?"),
        ({"steps": None}, "a.json:2: steps must be a whole number, got null"),
        ({"steps": "3"}, 'a.json:2: steps must be a whole number, got "3"'),
        ({"steps": 2.5}, "a.json:2: steps must be a whole number, got 2.5"),
        ({"steps": True}, "a.json:2: steps must be a whole number, got true"),
        ({"steps": float("inf")}, "a.json:2: steps must be a whole number, got Infinity"),
        ({"steps": 0}, "a.json:2: steps must be positive, got 0"),
        ({"name": ["x"]}, "a.json:3: name must be a string, got a list"),
        ({"part": 3}, "a.json:4: part must be an object, got 3"),
        ({"part": {"rate": 1}}, "a.json:4: part.shape is missing"),
        ({"part": {"rate": None, "shape": "flat"}}, "a.json:5: part.rate must be a number, got"),
        ({"part": {"rate": 10**400, "shape": "flat"}}, "a.json:5: part.rate must be a number"),
        ({"part": {"rate": 1, "shape": "flot"}}, 'a.json:6: part.shape must be one of "flat", "r'),
        ({"limit": "x"}, 'a.json:8: limit must be a whole number or null, got "x"'),
        ({"sizes": [1, {}]}, "sizes.1 must be a whole number, got an object"),
    ],
)
def test_a_faulty_field_is_named_with_file_and_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(tmp_path, {**GOOD, **change})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value: line 1"),
        ("[1]", "not a JSON object: '[1]'"),
        ("3", "not a JSON object: '3'"),
        ('{"steps": 3', "not a JSON object: Expecting"),
        ('{"steps": ' + "9" * 5000 + "}", "not a JSON object: Exceeds the limit"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"steps": 3, "steps": 4}', "'steps' is given twice"),
        (b'{"name": "\xff"}', "can't decode byte 0xff"),
        ('{"name": "\\ud800"}', "surrogates not allowed"),
        ("{}", "a.json:1: steps is missing"),
    ],
)
def test_what_is_no_object_of_the_kind_is_one_error_that_names_the_file(tmp_path, text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "a.json") in str(caught.value)


def test_a_character_beyond_the_basic_plane_is_no_half_pair(tmp_path):
    assert read(tmp_path, {**GOOD, "name": "\N{GRINNING FACE}"}).name == "\N{GRINNING FACE}"


def test_lines_are_read_to_the_one_that_was_cut_short(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"step": 1}\r\n\n{"step": 2, "note": "\xe2\x80\xa8"}\n{"step')
    assert [line for line, _ in files.json_lines(path)] == [1, 3]
    path.write_bytes(b'{"step": 1}\n{"step": 2}')
    assert [row["step"] for _, row in files.json_lines(path)] == [1, 2]
    for bad in (b'{"step": 1}\n{"st\n{"step": 2}\n', b'{"step": 1}\n[2]'):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"a.jsonl:2: not a JSON object"):
            list(files.json_lines(path))
