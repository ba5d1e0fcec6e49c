import numpy as np
import pytest

from jaxkit import submodular
from jaxkit.jobs import selection


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)


def test_the_rows_written_are_those_that_select_picks(features, tmp_path):
    path = tmp_path / "items.npy"
    np.save(path, features)
    written = selection.select_rows(path, 5)
    rows = [int(line) for line in written.indices.read_text().splitlines()]
    assert rows == submodular.select(features, 5).indices.tolist()
    assert written.figure.stat().st_size > 5000
    assert "0.632 of the optimum" in written.guarantee


def test_a_csv_gives_the_same_rows(features, tmp_path):
    np.save(tmp_path / "a.npy", features)
    np.savetxt(tmp_path / "b.csv", features, delimiter=",", header="a,b,c,d", comments="")
    picked = [
        selection.select_rows(tmp_path / name, 4).indices.read_text() for name in ("a.npy", "b.csv")
    ]
    assert picked[0] == picked[1]


@pytest.mark.usefixtures("bad_input")
def test_a_faulty_file_is_named(features, tmp_path):
    path = tmp_path / "items.npy"
    with pytest.raises(ValueError, match=r"items.npy does not exist"):
        selection.select_rows(path, 2)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"items.npy is not a whole .npy file"):
        selection.select_rows(path, 2)
    np.save(path, features[0])
    with pytest.raises(ValueError, match=r"must hold numbers of shape \[rows, features\]"):
        selection.select_rows(path, 2)
    features[7, 1] = np.nan
    np.save(path, features)
    with pytest.raises(ValueError, match="row 7 does not"):
        selection.select_rows(path, 2)
