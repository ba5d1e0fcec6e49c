import importlib.util
import json

import jax
import numpy as np
import pytest

from jaxkit import cli, datasets, training
from jaxkit.jobs import compilation, program
from jaxkit.jobs.config import PrivacyConfig, TrainConfig

SMALL = TrainConfig(
    d_model=32, num_layers=1, num_heads=2, head_dim=16, d_ff=64, batch_size=16, sequence_length=16
)


def sized(**options):
    return TrainConfig(**{**vars(SMALL), **options})


@pytest.fixture(scope="module")
def compiled(devices):
    return compilation.compile_program(sized(mesh="data=2,fsdp=4"), "cpu:8", vocab_size=64)


def test_a_step_holds_and_exchanges_what_the_closed_form_says(compiled):
    cost, closed = compiled.cost, compiled.closed_form
    given = 4 * 2 * (17 + 1)
    assert cost.argument_bytes - given == pytest.approx(
        closed.parameter_bytes + closed.optimizer_bytes, abs=64
    )
    assert cost.unknown_loops == 0
    assert cost.received(["fsdp"]) > 0
    assert compiled.roofline is None  # there are no rates of CPUs


@pytest.mark.slow
def test_a_saved_step_does_what_the_jitted_step_does(compiled, tmp_path):
    config = sized(mesh="data=2,fsdp=4")
    mesh = training.make_mesh(config.mesh)
    job = program.training_program(config, 64, mesh)
    path = compilation.save_program(compiled.executable, tmp_path / "step.bin")
    loaded = compilation.load_program(path, job)
    tokens = np.random.default_rng(0).integers(0, 64, 1000, np.int32)
    batch = next(datasets.token_batches(tokens, sequence_length=16, batch_size=16, seed=0))
    batch = training.place_batch(batch, mesh)

    def advanced(step):
        state = training.init_state(job.init, job.optimizer, jax.random.key(0), mesh)
        return jax.device_get(step(state, batch)[0].params)

    jax.tree.map(np.testing.assert_array_equal, advanced(loaded), advanced(job.step))
    path.write_bytes(b"no program")
    with pytest.raises(ValueError, match=r"step\.bin holds no program for these devices"):
        compilation.load_program(path, job)


@pytest.mark.slow
def test_a_private_step_sums_over_devices_once(devices, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("a line of text\n" * 80)
    config = sized(
        text=str(text), steps=2, batch_size=32, mesh="data=4,fsdp=2",
        privacy=PrivacyConfig(8.0, 1e-2),
    )  # fmt: skip
    found = compilation.compile_program(config, "cpu:8")
    parameters = 2 * found.closed_form.parameter_bytes
    # Gathered from their parts, and one sum of the clipped gradients, whatever the microbatches.
    assert found.cost.received() <= 1.1 * parameters * (1 / 2 + 2 * 7 / 8)


def test_the_command_writes_what_it_prints(capsys, tmp_path, devices):
    words = "--d-model 16 --num-layers 1 --num-heads 2 --head-dim 8 --d-ff 32 --batch-size 8"
    cli.main(["compile", "--topology", "cpu:8", "--vocab-size", "32", *words.split(),
              "--mesh", "data=4,tensor=2", "--out", str(tmp_path), "--save"])  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    printed = capsys.readouterr().out
    assert report["fits"]
    assert report["mesh"] == {"data": 4, "fsdp": 1, "tensor": 2}
    received = report["received"]
    assert received["total"] == sum(one["received"] for one in received["operations"])
    assert received["total"] == sum(received["by_axes"].values())
    for text in (printed, (tmp_path / "report.txt").read_text("utf-8")):
        assert "received over data" in text
        assert f"{received['total'] / 1e6:,.1f} MB" in text
    assert (tmp_path / "step.bin").stat().st_size > 0


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--topology", "v5e-16"], "topology must be a TPU's such as 'v5e:16x16'"),
        (["--topology", "cpu:8", "--mesh", "data=3"], "must multiply to the number of devices"),
        (
            ["--topology", "cpu:8", "--batch-size", "12", "--vocab-size", "8"],
            "divisible by data x fsdp = 8",
        ),
        (["--topology", "cpu:8", "--vocab-size", "0"], "vocab_size must be an integer >= 1"),
        (["--topology", "v5e:4x4"], "pip install 'jaxkit[tpu]'"),
    ],
)
def test_what_cannot_be_compiled_is_one_line(capsys, monkeypatch, tmp_path, options, message):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name)
    )
    with pytest.raises(SystemExit) as stop:
        cli.main(["compile", *options, "--out", str(tmp_path)])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert message in error


@pytest.mark.tpu
def test_a_step_that_does_not_fit_is_a_result(pod):
    config = sized(batch_size=4096, sequence_length=2048, d_model=256, dtype="bfloat16")
    found = compilation.compile_program(config, "v5e:2x2", vocab_size=32_000, effort="low")
    assert found.cost is None
    assert "exceeds available HBM (15.75G)" in found.refusal
    assert not compilation.compilation_report(found)["fits"]
    assert compilation.compilation_tables(found)
