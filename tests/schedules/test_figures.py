"""Figures show what they are given."""

import numpy as np
import optax
import pytest

from jaxkit import plotting, schedules


def test_any_optax_schedules_share_one_figure():
    figure = schedules.plot_schedules(
        {
            "REX": schedules.schedule_from_profile("rex", 0.3, 100),
            "optax": optax.linear_schedule(0.1, 0.0, 50),
            "constant": optax.constant_schedule(0.2),
        }
    )
    (panel,) = figure.axes
    drawn = {line.get_label(): line.get_xydata() for line in panel.lines}
    assert list(drawn) == ["REX", "optax", "constant"]
    assert drawn["REX"][-1].tolist() == [100.0, 0.0]
    assert drawn["optax"][25, 1] == pytest.approx(0.05)
    assert drawn["constant"][:, 1] == pytest.approx(0.2)
    assert plotting.png(figure).startswith(b"\x89PNG")


def test_the_refined_figure_shows_norms_filter_and_schedules():
    norms = np.linspace(30.0, 1.0, 200)
    norms[17] = np.nan
    figure = schedules.refined_schedule_figure(norms, steps=np.arange(200) * 10, title="run")
    left, right = figure.axes
    assert left.get_yscale() == "log"
    assert left.get_title(loc="left") == "run"
    refined = right.lines[0].get_xydata()
    np.testing.assert_allclose(refined[:, 1], schedules.refine_schedule(norms), atol=1e-6)
    assert refined[-1].tolist() == [1990.0, 0.0]
    gain = float(schedules.refinement_gain(schedules.smooth_norms(norms)))
    assert f"{gain:.2f}x" in right.get_title(loc="left")


@pytest.mark.usefixtures("bad_input")
def test_bad_input_is_named_with_what_is_allowed():
    with pytest.raises(ValueError, match="schedules must name at least one"):
        schedules.plot_schedules({})
    with pytest.raises(ValueError, match="total_steps must be given"):
        schedules.plot_schedules({"a": optax.constant_schedule(1.0)})
    with pytest.raises(ValueError, match="steps must have 3 entries like norms, got 2"):
        schedules.refined_schedule_figure(np.ones(3), steps=np.arange(2))
