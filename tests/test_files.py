"""Files are replaced whole, or not at all."""

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
