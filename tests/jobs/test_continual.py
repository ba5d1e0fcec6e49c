"""`jaxkit continual`: a run, its report, its resumption."""

import signal

import numpy as np
import pytest

from jaxkit import continual
from jaxkit.jobs import continual as job


def fast(tmp_path, **options):
    return job.ContinualConfig(
        runs=str(tmp_path), name="run", train_epochs=2, describe_epochs=2, **options
    )


@pytest.fixture
def small_backbone(monkeypatch):
    """A backbone that nobody trains."""
    import jax

    def untrained(key, model, images, labels, **options):
        return model.init(key, jax.numpy.asarray(images[:1]))

    monkeypatch.setattr(continual, "pretrain_backbone", untrained)
    return jax


def test_weights_do_not_fit_digits(tmp_path):
    with pytest.raises(ValueError, match="weights must be left out"):
        job.learn_stream(fast(tmp_path, weights="vit.safetensors"))


def test_an_unknown_method_is_refused(tmp_path, bad_input):
    with pytest.raises(ValueError, match="did you mean 'sema'"):
        job.learn_stream(fast(tmp_path, method="semma"))


@pytest.mark.slow
def test_a_stopped_run_resumes_and_writes_its_report(tmp_path, small_backbone, monkeypatch):
    once = []

    class Stopping(job._Bar):
        def advance(self, index, piece):
            super().advance(index, piece)
            if index == 1 and not once:
                once.append(signal.raise_signal(signal.SIGTERM))

    monkeypatch.setattr(job, "_Bar", Stopping)
    config = fast(tmp_path, threshold=0.1)
    stopped = job.learn_stream(config)
    assert stopped.report is None
    assert not stopped.result.finished
    done = job.learn_stream(config)
    assert done.result.finished
    page = done.report.read_text("utf-8")
    for text in ("forgetting", "threshold", "every task would add 10", "task 2 block"):
        assert text in page
    assert {p.name for p in tmp_path.glob("run/*.png")} == {
        "accuracy.png", "expansion.png", "router.png"
    }  # fmt: skip
    whole = job.learn_stream(job.ContinualConfig(**{**vars(config), "name": "other"}))
    np.testing.assert_array_equal(whole.result.accuracy, done.result.accuracy)
