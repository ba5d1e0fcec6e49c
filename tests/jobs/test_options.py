import numpy as np
import pytest

from jaxkit import jobs
from jaxkit.jobs import compilation, curve_fit, reproduction, selection


def test_results_that_have_no_place_are_refused_before_the_work(tmp_path, bad_input):
    place = tmp_path / "a.txt"
    place.write_text("")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    np.save(tmp_path / "a.npy", np.ones((4, 2)))
    works = [
        lambda out: selection.select_rows(tmp_path / "a.npy", 3, out=out),
        lambda out: reproduction.reproduce(["rex"], out=out),
        lambda out: curve_fit.fit_runs([tmp_path / "no-run"], out=out),
        lambda out: compilation.compile_run(jobs.TrainConfig(), "local", out=out),
    ]
    for work in works:
        for out in (place, place / "deeper", link):
            with pytest.raises(ValueError, match=r"out must be a folder, .*(a.txt|link) is none"):
                work(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "a.txt", "link"]
