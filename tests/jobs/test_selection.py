import io
import zipfile

import numpy as np
import pytest
import scipy

from jaxkit import submodular
from jaxkit.datasets import array_files
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
    assert "at least 0.632 of the optimum" in written.guarantee


def test_a_csv_gives_the_same_rows(features, tmp_path):
    np.save(tmp_path / "a.npy", features)
    np.savetxt(tmp_path / "b.csv", features, delimiter=",", header="a,b,c,d", comments="")
    picked = [
        selection.select_rows(tmp_path / name, 4).indices.read_text() for name in ("a.npy", "b.csv")
    ]
    assert picked[0] == picked[1]


def test_a_table_is_read_with_or_without_header_by_columns_and_with_names(features, tmp_path):
    want = submodular.select(features[:, :2], 4).indices.tolist()
    names = [f"row-{i}" for i in range(60)]
    plain = "".join(f"{i},{a!r},{b!r}\n" for i, (a, b) in enumerate(features[:, :2].tolist()))
    (tmp_path / "plain.csv").write_text(plain)
    (tmp_path / "named.tsv").write_text(
        "id\tx\ty\tz\n"
        + "".join(
            f"{name}\t{a!r}\t{b!r}\t{c!r}\n"
            for name, (a, b, c, _) in zip(names, features.tolist(), strict=True)
        )
    )

    def lines(name, **options):
        return selection.select_rows(tmp_path / name, 4, **options).indices.read_text().split()

    assert lines("plain.csv", columns=["1", "2"]) == [str(row) for row in want]
    assert lines("plain.csv", ids="0") == [str(row) for row in want]
    assert lines("named.tsv", columns=["x", "y"], ids="id") == [names[row] for row in want]
    with pytest.raises(ValueError, match="columns 'id' do not"):
        lines("named.tsv")
    with pytest.raises(ValueError, match="column must be one of"):
        lines("named.tsv", columns=["w"])


def test_sparse_and_parquet_files_are_read_as_the_rows_are(features, tmp_path):
    features[abs(features) < 0.5] = 0
    want = submodular.select(features, 4).indices.tolist()
    scipy.sparse.save_npz(tmp_path / "a.npz", scipy.sparse.csr_array(features))
    columns = {"name": [f"r{i}" for i in range(60)]}
    columns |= {f"x{j}": features[:, j] for j in range(4)}
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), tmp_path / "b.parquet")
    rows = selection.select_rows(tmp_path / "a.npz", 4).indices.read_text().split()
    assert rows == [str(row) for row in want]
    found = selection.select_rows(tmp_path / "b.parquet", 4, ids="name").indices.read_text()
    assert found.split() == [f"r{row}" for row in want]


def test_flags_are_numbers_and_fewer_rows_than_k_are_all_of_them(features, tmp_path):
    np.save(tmp_path / "a.npy", np.eye(3, dtype=bool))
    found = selection.select_rows(tmp_path / "a.npy", 5).indices.read_text()
    assert sorted(found.split()) == ["0", "1", "2"]


@pytest.mark.usefixtures("bad_input")
def test_a_faulty_file_is_named(features, tmp_path):
    path = tmp_path / "items.npy"
    with pytest.raises(ValueError, match=r"items.npy does not exist"):
        selection.select_rows(path, 2)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"items.npy is not a whole .npy file"):
        selection.select_rows(path, 2)
    for shape in ((10**12, 4), (2**64, 1)):
        path.write_bytes(claiming(shape))
        with pytest.raises(ValueError, match=r"items.npy is not a whole .npy file"):
            selection.select_rows(path, 2)
    np.save(path, features[0])
    with pytest.raises(ValueError, match=r"items.npy: features must be a .* of rank 2"):
        selection.select_rows(path, 2)
    np.save(path, features * 1j)
    with pytest.raises(ValueError, match="real numbers, got dtype complex64"):
        selection.select_rows(path, 2)
    features[7, 1] = np.nan
    np.save(path, features)
    with pytest.raises(ValueError, match="row 7"):
        selection.select_rows(path, 2)
    path = tmp_path / "latin.csv"
    path.write_bytes("h\xf6he\n1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.csv must be a table of UTF-8 text"):
        selection.select_rows(path, 2)
    path = tmp_path / "sparse.npz"
    matrix = scipy.sparse.csr_array(np.eye(4, dtype=np.float32))
    matrix.indices[2] = 10**9
    scipy.sparse.save_npz(path, matrix)
    with pytest.raises(ValueError, match=r"sparse.npz is not a sparse matrix of SciPy"):
        selection.select_rows(path, 2)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("extra.npy", claiming((10**13, 4)))
    with pytest.raises(ValueError, match=r"sparse.npz: array 'extra' cannot be read"):
        array_files.read_npz(path)


def claiming(shape):
    """A .npy file of 64 bytes behind a header that claims another shape."""
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + bytes(64)
