"""Text of the user's in figures."""

import numpy as np
import pytest

from jaxkit import plotting


@pytest.mark.parametrize("name", ["$\\frac{$", "[/x]", "a $5 and b $6", "$", "<b>&", "τάξη"])
def test_names_are_drawn_as_they_are(tmp_path, name):
    figure, panel = plotting.axes()
    curves = {name: (np.arange(3), 10.0 ** np.arange(3)), "other": (np.arange(3), np.ones(3))}
    plotting.lines(panel, curves, xlabel=name, ylabel=name, title=name)
    panel.set_xticks([0, 1], [name, name])
    panel.set_yscale("log")
    path = plotting.save(figure, tmp_path / "figure.png")
    assert path.stat().st_size > 5000
    # Powers on a logarithmic axis stay mathematics.
    powers = [label for label in panel.get_yticklabels() if "10^" in label.get_text()]
    assert powers
    assert all(label.get_parse_math() for label in powers)


def test_a_curve_of_one_point_is_seen():
    _, panel = plotting.axes()
    plotting.lines(panel, {"one": ([3], [1.0]), "two": ([1, 2], [1.0, 2.0])})
    assert [line.get_marker() for line in panel.get_lines()] == ["o", "None"]
