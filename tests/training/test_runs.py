"""The folder of a run: one writer, an identity, proved checkpoints of any pytree, quiet readers."""

import collections
import concurrent.futures
import errno
import json
import os
import pathlib
import random
import resource
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxkit import training
from jaxkit.training import runs

IDENTITY = {"config": {"seed": 0, "steps": 10}, "data": "ab12"}


def make_state(step, mesh_text="data=8"):
    mesh = training.make_mesh(mesh_text)
    params = {"w": jnp.arange(64.0).reshape(8, 8) + step}
    params = jax.device_put(params, NamedSharding(mesh, P("fsdp", "tensor")))
    everywhere = training.replicated(mesh)
    return training.TrainState(
        jax.device_put(jnp.int32(step), everywhere),
        params,
        optax.adam(0.1).init(params),
        jax.device_put(jax.random.key(7), everywhere),
    )


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def write(folder, *steps, **options):
    with training.Run(folder, **options) as run:
        run.identify(IDENTITY)
        for step in steps:
            run.save(step, make_state(step), {"at": step})


def restore(folder, like=None, **options):
    with training.Run(folder, **options) as run:
        run.identify(IDENTITY)
        return run.restore(make_state(0) if like is None else like)


def files_of(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


Custom = collections.namedtuple("Custom", "a b")

PYTREES = {
    "namedtuples, None and empty nodes": lambda: Custom(
        {"x": jnp.ones(3)}, (None, (), [jnp.zeros(2)])
    ),
    "keys of two kinds": lambda: [
        jax.random.key(1),
        jax.random.split(jax.random.key(2, impl="rbg"), 3),
    ],
    "arrays without elements": lambda: {"e": jnp.zeros((0, 3)), "f": np.zeros((2, 0), np.int64)},
    "nothing at all": lambda: {},
    "types of every width": lambda: [
        jnp.ones(2, t) for t in (jnp.bfloat16, jnp.float8_e4m3fn, jnp.int8, jnp.uint32, bool)
    ],
    "NumPy in double precision": lambda: {
        "d": np.arange(3.0),
        "i": np.int64(2**40),
        "s": np.float64(0.1),
    },
    "names with separators": lambda: {"a/b": {"c.d": jnp.ones(1)}, "a": {"b/c.d": jnp.zeros(1)}},
    "numbers that are not finite": lambda: jnp.array([jnp.nan, jnp.inf, -0.0]),
    "a single array": lambda: jnp.arange(4),
}


def blank(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return (jnp if isinstance(leaf, jax.Array) else np).zeros(leaf.shape, leaf.dtype)


@pytest.mark.parametrize("make", PYTREES.values(), ids=PYTREES.keys())
def test_any_pytree_comes_back_bit_for_bit(tmp_path, make):
    state = make()
    with training.Run(tmp_path) as run:
        run.identify({})
        run.save(3, state, {"text": "ä", "list": [1, None, 0.1]})
    found = training.read_run(tmp_path, jax.tree.map(blank, state))
    assert (found.step, found.record) == (3, {"text": "ä", "list": [1, None, 0.1]})
    assert_equal(found.state, state)


def test_a_large_state_is_written_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxkit.training.checkpoints._TOGETHER", 3)
    state = [make() for make in PYTREES.values()]
    with training.Run(tmp_path) as run:
        run.identify({})
        run.save(1, state)
        run.save(2, state)
    assert len([*(tmp_path / "checkpoints" / "1" / "state").iterdir()]) > 8
    # Whoever reads need not know how large the parts are.
    monkeypatch.undo()
    like = jax.tree.map(blank, state)
    assert_equal(training.read_run(tmp_path, like).state, state)
    for path in (tmp_path / "checkpoints" / "2" / "state" / "5").rglob("d/*"):
        path.unlink()
    assert training.read_run(tmp_path, like, report=str).step == 1


def test_numbers_of_python_come_back_as_they_were_and_text_is_refused(tmp_path):
    with training.Run(tmp_path) as run:
        with pytest.raises(TypeError, match=r"identity must be JSON .*got array\(\[0, 1\]\)"):
            run.identify({"data": np.arange(2)})
        run.identify({"sizes": [np.int32(3), np.float64(0.5)]})
        run.save(1, {"i": 3, "f": 0.5, "b": True})
        for wrong in ("text", b"bytes", object()):
            with pytest.raises(TypeError, match=r"state\['x'\] must be an array or a number"):
                run.save(2, {"x": wrong})
    found = training.read_run(tmp_path, {"i": 0, "f": 0.0, "b": False}).state
    assert found == {"i": 3, "f": 0.5, "b": True}
    assert {name: type(value) for name, value in found.items()} == {"i": int, "f": float, "b": bool}
    assert runs.read_identity(tmp_path) == {"sizes": [3, 0.5]}


def test_what_else_lies_among_the_checkpoints_is_passed_over(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "checkpoints" / "7").write_text("a file")
    (tmp_path / "checkpoints" / "best").mkdir()
    (tmp_path / "checkpoints" / "007").mkdir()
    assert training.read_run(tmp_path, make_state(0)).step == 1
    assert restore(tmp_path).step == 1


def test_a_state_moves_to_another_mesh(tmp_path):
    write(tmp_path, 3)
    like = make_state(0, "fsdp=4,tensor=2")
    found = restore(tmp_path, like)
    assert found.state.params["w"].sharding == like.params["w"].sharding
    assert_equal(found.state, make_state(3))


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    spoil = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with training.Run(tmp_path) as run:
        run.identify({})
        state = jnp.arange(1e5)
        run.save(1, state)
        spoil(state).block_until_ready()
    np.testing.assert_array_equal(training.read_run(tmp_path, jnp.zeros(10**5)).state, range(10**5))


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (training.Keep(2), [8, 9]),
        (training.Keep(1, every=4), [4, 8, 9]),
        (training.Keep(1, best="loss"), [3, 9]),
        (training.Keep(2, every=5, best="other"), [5, 8, 9]),
    ],
)
def test_the_latest_every_nth_and_the_best_are_kept(tmp_path, keep, left):
    for steps in ((1, 2, 3), (3, 4, 5, 8, 9)):  # in two processes
        with training.Run(tmp_path, keep=keep) as run:
            run.identify({})
            for step in steps:
                run.save(step, jnp.ones(1), {}, {"loss": abs(step - 3.2)})
            run.wait()
    assert run.steps == left


def test_a_second_writer_is_refused_by_the_folders_name_and_readers_are_not(tmp_path):
    with training.Run(tmp_path / "run") as run:
        run.identify(IDENTITY)
        run.save(1, make_state(1))
        run.wait()
        with pytest.raises(OSError, match=r"run is being written by another process"):
            training.Run(tmp_path / "run").__enter__()
        assert training.read_run(tmp_path / "run", make_state(0)).step == 1
    write(tmp_path / "run", 2)
    assert training.read_run(tmp_path / "run", make_state(0)).step == 2


def test_another_identity_is_refused_with_every_difference_and_never_overwritten(tmp_path):
    write(tmp_path, 1)
    before = files_of(tmp_path)
    other = {"config": {"seed": 1, "steps": 20, "new": None}, "tokenizer": "x" * 200}
    with training.Run(tmp_path) as run, pytest.raises(ValueError, match="another run") as caught:
        run.identify(other, may_change={"config.steps"})
    for part in ("config.seed was 0, is now 1", "data was 'ab12', is now None", "tokenizer was"):
        assert part in str(caught.value)
    assert "steps" not in str(caught.value)
    assert files_of(tmp_path) == before
    with pytest.raises(ValueError, match=r"config.seed was 0"):
        training.read_run(tmp_path, make_state(0), identity=other)


def test_a_field_that_may_change_is_stored_anew(tmp_path):
    write(tmp_path, 1)
    with training.Run(tmp_path) as run:
        run.identify({**IDENTITY, "config": {"seed": 0, "steps": 20}}, may_change={"config.steps"})
    assert runs.read_identity(tmp_path)["config"] == {"seed": 0, "steps": 20}


def test_a_program_is_compared_under_one_version_of_jax(tmp_path):
    def program(factor):
        return training.program_fingerprint(lambda x: factor * x, jnp.ones(2))

    assert program(2.0) == program(2.0) != program(3.0)
    assert program(jnp.ones(2)) != program(jnp.zeros(2))  # constants are no text
    with training.Run(tmp_path) as run:
        run.identify({"program": program(2.0)})
        with pytest.raises(ValueError, match=r"program.sha256 was"):
            run.identify({"program": program(3.0)})
        run.identify({"program": {**program(3.0), "jax": "99"}})


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="Linux tells it")
def test_a_fingerprint_lets_go_of_the_pages_of_a_mapped_array(tmp_path):
    def resident():
        status = pathlib.Path("/proc/self/status").read_text()
        return int(status.partition("RssFile:")[2].split()[0]) * 1024

    with open(tmp_path / "text.bin", "wb") as stream:
        stream.truncate(1 << 26)
    array = np.memmap(tmp_path / "text.bin", np.uint8, mode="r")
    before = resident()
    found = training.fingerprint({"tokens": array[2:]})
    assert resident() - before < 1 << 24
    assert found == training.fingerprint({"tokens": np.zeros((1 << 26) - 2, np.uint8)})
    assert array.sum() == 0
    assert resident() - before > 1 << 25  # so that reading it otherwise would be seen


def test_a_program_is_known_by_its_constants_also_inside_jit_and_scan():
    def traced(offset, wrap):
        array = np.full(2, offset, np.float32)
        return training.program_fingerprint(wrap(lambda x: x + array), jnp.ones(2))

    def scanned(function):
        return lambda x: jax.lax.scan(lambda c, _: (jax.jit(function)(c), None), x, None, 3)[0]

    for wrap in (lambda f: f, jax.jit, scanned):
        assert traced(1.0, wrap) == traced(1.0, wrap) != traced(2.0, wrap)


def test_checkpoints_that_nothing_describes_belong_to_no_run(tmp_path):
    with training.Run(tmp_path) as run:
        run.identify({"seed": 0})
        run.save(1, {"w": jnp.ones(2)}, {})
    (tmp_path / "config.json").unlink()
    with training.Run(tmp_path) as run, pytest.raises(ValueError, match=r"no config\.json"):
        run.identify({"seed": 0})
    assert not (tmp_path / "config.json").exists()


def test_an_identity_comes_first(tmp_path):
    with training.Run(tmp_path) as run:
        for use in (lambda: run.save(1, {}), lambda: run.restore({}), lambda: run.log("m", 0)):
            with pytest.raises(RuntimeError, match="call identify first"):
                use()


def damage(folder, step, fault):
    place = folder / "checkpoints" / str(step)
    data = max((place / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    if fault == "truncated":
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    elif fault == "zeros":
        data.write_bytes(bytes(data.stat().st_size))
    elif fault == "missing":
        data.unlink()
    elif fault == "record":
        (place / "record.json").write_text("{}")
    elif fault == "interrupted":
        (place / "SHA256SUMS").unlink()
    elif fault == "sums cut":
        sums = (place / "SHA256SUMS").read_text().splitlines()
        (place / "SHA256SUMS").write_text("\n".join(sums[:2]) + "\n")
    else:
        (place / "SHA256SUMS").write_bytes(b"\xff\x00")


@pytest.mark.parametrize(
    "fault", ["truncated", "zeros", "missing", "record", "interrupted", "sums cut", "garbage sums"]
)
def test_a_damaged_checkpoint_is_set_aside_under_a_free_name(tmp_path, fault):
    write(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "damaged-2").mkdir()
    damage(tmp_path, 2, fault)
    before, said = files_of(tmp_path), []
    assert training.read_run(tmp_path, make_state(0), report=said.append).step == 1
    assert files_of(tmp_path) == before  # a reader sets nothing aside
    found = restore(tmp_path, report=said.append)
    assert (found.step, found.record) == (1, {"at": 1})
    assert ["checkpoints/2 is damaged" in line for line in said] == [True, True]
    assert (tmp_path / "checkpoints" / "damaged-2.2" / "state").is_dir()


def test_a_folder_of_damaged_checkpoints_does_not_start_anew_unless_told(tmp_path):
    write(tmp_path, 1)
    damage(tmp_path, 1, "zeros")
    for _ in range(2):
        with pytest.raises(OSError, match=r"damaged checkpoints only: remove .*damaged-\*"):
            restore(tmp_path)
    for path in sorted((tmp_path / "checkpoints").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert restore(tmp_path) is None


@pytest.mark.parametrize("reader", [restore, training.read_run])
def test_another_shape_type_or_name_is_said_and_nothing_is_renamed(tmp_path, reader):
    write(tmp_path, 1, 2)
    before = files_of(tmp_path)
    state = make_state(0)
    like = state._replace(params={"w": jnp.zeros((4, 8)), "new": jnp.ones(1, jnp.int8)})
    with pytest.raises(ValueError, match=r"params\['w'\] is float32\[8, 8\] there, float32\[4, 8\]"
                       r" here; .*\['new'\] is absent there, int8\[1\] here"):  # fmt: skip
        reader(tmp_path, like)
    assert files_of(tmp_path) == before
    assert restore(tmp_path).step == 2


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(5, "I/O"), MemoryError()])
@pytest.mark.parametrize("reader", [restore, training.read_run])
def test_a_disk_or_memory_that_fails_is_no_damage(tmp_path, monkeypatch, error, reader):
    write(tmp_path, 1, 2)
    before = files_of(tmp_path)
    opened = pathlib.Path.open

    def refuse(self, mode="r", *args, **options):
        if "state" in self.parts and mode == "rb":
            raise error
        return opened(self, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", refuse)
        with pytest.raises(type(error)):
            reader(tmp_path, make_state(0))
    assert files_of(tmp_path) == before
    assert restore(tmp_path).step == 2


def test_what_a_killed_save_left_behind_is_removed_by_the_next_writer_only(tmp_path):
    write(tmp_path, 1)
    for name in (".2.writing", ".0.pruned"):
        (tmp_path / "checkpoints" / name).mkdir()
        (tmp_path / "checkpoints" / name / "half").write_text("half")
    assert training.read_run(tmp_path, make_state(0)).step == 1
    assert len(list((tmp_path / "checkpoints").iterdir())) == 3
    assert restore(tmp_path).step == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_a_save_that_fails_names_the_cause_and_the_checkpoints_before_it_stand(tmp_path):
    write(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with training.Run(tmp_path) as run:
        run.identify(IDENTITY)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
            run.save(2, {"noise": np.random.default_rng(0).normal(size=10**5)})
            with pytest.raises(OSError, match="File too large") as caught:
                run.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert restore(tmp_path).step == 1


def test_a_reader_takes_the_newest_while_it_is_pruned_under_it(tmp_path):
    write(tmp_path, 0)
    stop, seen = threading.Event(), []

    def read():
        while not stop.is_set():
            found = training.read_run(tmp_path, make_state(0))
            assert_equal(found.state, make_state(found.step))
            seen.append(found.step)

    with concurrent.futures.ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(read) for _ in range(2)]
        try:
            write(tmp_path, *range(1, 13), keep=training.Keep(1))
        finally:
            stop.set()
        for each in reading:
            each.result()
    assert len(set(seen)) > 2


def flip_and_read(folder, like, rng):
    """Flip one bit of one file: "noticed", "harmless" or "silent"."""
    files = sorted(p for p in (folder / "checkpoints").rglob("*") if p.is_file())
    # Each file as likely as another, so that small ones are hit too.
    path = rng.choice([file for file in files if file.stat().st_size])
    good = path.read_bytes()
    at = rng.randrange(8 * len(good))
    path.write_bytes(good[: at // 8] + bytes([good[at // 8] ^ 1 << at % 8]) + good[at // 8 + 1 :])
    try:
        found = training.read_run(folder, like, report=lambda line: None)
        assert_equal(found.state, make_state(1))
        return "harmless"
    except OSError:
        return "noticed"
    except AssertionError:
        return "silent"
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("flips", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_a_flipped_bit_is_noticed_or_harmless(tmp_path, flips):
    write(tmp_path, 1)
    rng, like = random.Random(0), make_state(0)
    found = collections.Counter(flip_and_read(tmp_path, like, rng) for _ in range(flips))
    assert found["silent"] == 0
    assert found["noticed"] > 0.9 * flips


def resources():
    statm = pathlib.Path("/proc/self/statm").read_text().split()
    return (
        len(os.listdir("/proc/self/fd")),
        threading.active_count(),
        int(statm[1]) * resource.getpagesize(),
    )


@pytest.mark.slow
def test_checkpoints_take_no_descriptors_threads_or_memory_of_the_process(tmp_path):
    count = int(os.environ.get("JAXKIT_CHECKPOINTS", "300"))
    with training.Run(tmp_path) as run:
        run.identify({})
        for step in range(count):
            run.save(step, make_state(step))
            run.wait()
            if step == 20:
                before = resources()
        after = resources()
    assert after[:2] == before[:2]
    assert after[2] < 1.05 * before[2]


def test_logs_and_identity_are_json_that_anybody_reads(tmp_path):
    write(tmp_path, 1)
    assert json.loads((tmp_path / "config.json").read_text()) == IDENTITY
    assert (tmp_path / "checkpoints" / "1" / "SHA256SUMS").read_text().count("\n") > 5
    record = json.loads((tmp_path / "checkpoints" / "1" / "record.json").read_text())
    assert record["record"] == {"at": 1}
    assert ["['w']" in path or path[0] in ".[" for path, *_ in record["state"]]


@pytest.mark.usefixtures("bad_input")
@pytest.mark.parametrize("keep", [training.Keep(0), training.Keep(-1), training.Keep(2, every=0)])
def test_what_to_keep_is_positive(tmp_path, keep):
    with pytest.raises(ValueError, match=r"keep\.\w+ must be an integer >= 1"):
        training.Run(tmp_path, keep=keep)


def test_a_run_is_not_written_beside_the_program_because_its_folder_has_no_name():
    with pytest.raises(ValueError, match=r"folder must name a folder .* got ''"):
        training.Run("")


_TOGETHER = """
import json, sys
from jaxkit import training
together = training.distributed_run()
together.__enter__()
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = training.make_mesh("fsdp=-1")
place = NamedSharding(mesh, P("fsdp"))
make = jax.jit(lambda x: {"w": x + np.arange(8.0), "key": jax.random.key(7)},
               out_shardings={"w": place, "key": training.replicated(mesh)})
refused, found = [], []
for steps in (5, 8):
    with training.Run(sys.argv[1]) as run:
        run.identify({"seed": 0})
        restored = run.restore(make(0))
        found.append(restored and restored.step)
        state = make(0) if restored is None else restored.state
        training.drive(lambda state, step, most: training.Lap(make(step + 1)), state,
                       first_step=found[-1] or 0, num_steps=steps, run=run,
                       cadence=training.Cadence(3, None))
        for use in (lambda: run.identify({"seed": 1}), training.Run(sys.argv[1]).__enter__):
            try:
                use()
            except (OSError, ValueError) as error:
                refused.append(type(error).__name__)
again = training.read_run(sys.argv[1], make(0)).state
total = float(jax.jit(lambda w: (w * w).sum())(again["w"]))
if jax.process_index() == 0:
    print("RESULT", json.dumps([found, refused, run.steps, total]))
together.__exit__(None, None, None)
"""


@pytest.mark.slow
def test_two_processes_write_one_run(on_processes, tmp_path):
    found, refused, steps, total = on_processes(_TOGETHER, 2, tmp_path / "run")
    assert found == [None, 5]
    assert refused == ["ValueError", "OSError"] * 2
    assert steps == [6, 8]
    assert total == sum((8 + i) ** 2 for i in range(8))


def test_a_file_in_the_place_of_a_folder_is_said_to_be_one(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for folder in ("notes.txt", "notes.txt/run"):
        with pytest.raises(NotADirectoryError, match="must be a folder, and it or one that is to"):
            with training.Run(tmp_path / folder):
                pass
