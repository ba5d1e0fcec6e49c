import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxkit import jobs, training

SMALL = {
    "steps": 6,
    "batch_size": 8,
    "sequence_length": 32,
    "d_model": 16,
    "num_layers": 2,
    "num_heads": 2,
    "head_dim": 8,
    "d_ff": 32,
    "warmup_steps": 2,
    "checkpoint_every": 2,
    "evaluate_every": 3,
    "evaluation_windows": 8,
}

PROSE = "the quick brown fox jumps over the lazy dog; " * 200


@pytest.fixture(scope="session")
def programs_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module", autouse=True)
def compile_once(programs_folder):
    """Compile a program once for all tests of this room and all processes that they start."""
    options = {
        "jax_compilation_cache_dir": str(programs_folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in options.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(PROSE, "utf-8")
    return path


@pytest.fixture(scope="session")
def small_config(text_file):
    """Make a small configuration: `small_config(tmp_path, steps=4)`."""

    def make(folder, **changes):
        return jobs.TrainConfig(**{**SMALL, "runs": str(folder), "text": str(text_file), **changes})

    return make


@pytest.fixture(scope="session")
def finished_run(small_config, tmp_path_factory):
    """One small run, made once for all tests that only read it."""
    return jobs.train(small_config(tmp_path_factory.mktemp("runs")))


@pytest.fixture
def train_until_killed(monkeypatch):
    """`train_until_killed(config, step)`: train, killed just before the checkpoint of a step."""

    def train(config, step):
        save = training.Run.save

        def killed(self, at, *arguments):
            if at == step:
                raise KeyboardInterrupt
            save(self, at, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(training.Run, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                jobs.train(config)

    return train
