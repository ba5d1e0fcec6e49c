"""`jaxkit federated`: one command from pictures of clients to a page that compares methods."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxkit import federated as fl
from jaxkit import training
from jaxkit.jobs import picture_clients
from jaxkit.jobs.federated import FederatedConfig, federate, traffic


def write_leaf(folder, users, seed, examples):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    data = {
        user: {
            "x": (rng.integers(0, 256, (n, 16)) / 255).tolist(),
            "y": rng.integers(0, 3, n).tolist(),
        }
        for user, n in zip(users, examples, strict=True)
    }
    counts = [len(one["y"]) for one in data.values()]
    content = {"users": list(data), "num_samples": counts, "user_data": data}
    (folder / "all_data_0.json").write_text(json.dumps(content))


def test_users_of_leaf_are_trained_on_and_tested_each_on_its_own(tmp_path, capsys):
    write_leaf(tmp_path / "leaf" / "train", ["a", "b", "c"], 0, [5, 4, 2])
    write_leaf(tmp_path / "leaf" / "test", ["b", "c", "new"], 1, [2, 3, 1])
    config = FederatedConfig(
        data=f"leaf:{tmp_path / 'leaf'}", partition="natural", cohort_size=2, model="logistic",
        rounds=2, local_epochs=1, batch_size=2, evaluate_every=1, weighting="examples",
        method=("fedavg",), runs=str(tmp_path), name="run",
    )  # fmt: skip
    found = federate(config)
    (score,) = found.scores["fedavg"]
    assert 0 <= score["client_worst"] <= score["client_mean"] <= 1
    assert score["bytes_up"] == 2 * 2 * 4 * (16 * 3 + 3)
    told = capsys.readouterr()
    assert "3 clients of 2 to 5 pictures (natural)" in told.err
    assert "MiB more in a round" in told.err
    page = found.report.read_text()
    assert "its own test pictures" in page
    assert page.count("<img") == 3
    rows = training.read_metrics(found.folder / "fedavg-0" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]


def test_pictures_that_leaf_names_lie_in_its_folder(tmp_path):
    for place, (part, gray) in enumerate({"train": 10, "test": 200}.items()):
        Image.new("RGB", (4, 4), (gray,) * 3).save(tmp_path / f"{part}.png")
        (tmp_path / part).mkdir()
        user = {"x": [f"{part}.png"] * 2, "y": [0, place]}
        content = {"users": ["a"], "num_samples": [2], "user_data": {"a": user}}
        (tmp_path / part / "faces.json").write_text(json.dumps(content))
    problem = picture_clients.read_problem(natural(f"leaf:{tmp_path}", tmp_path, image_size=4), 0)
    assert np.unique(problem.data.examples["x"]).tolist() == [10]
    assert np.unique(problem.test["x"]).tolist() == [200]
    assert problem.test["y"].tolist() == [0, 1]


def test_faulty_leaf_files_are_refused_by_file_and_user(tmp_path):
    with pytest.raises(ValueError, match="got none in"):
        fl.read_clients(tmp_path)
    write_leaf(tmp_path / "a", ["u"], 0, [3])
    file = tmp_path / "a" / "all_data_0.json"
    good = json.loads(file.read_text())
    for change, message in (
        ({"num_samples": [4]}, "num_samples of user 'u' is 4, but it has 3"),
        ({"users": ["v"]}, "all_data_0.json is not a LEAF file: KeyError"),
        ({"user_data": {"u": {"x": ["text"] * 3, "y": [0, 1, 2]}}}, "x must be numbers"),
        ({"user_data": {"u": {"x": [[0.5]] * 3, "y": [0, 1]}}}, "as many and at least one"),
    ):
        file.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            fl.read_clients(tmp_path / "a")


def natural(data, folder, **options):
    return FederatedConfig(
        data=str(data), partition="natural", cohort_size=2, model="logistic", rounds=1,
        local_epochs=1, batch_size=2, evaluate_every=1, method=("fedavg",), runs=str(folder),
        **options,
    )  # fmt: skip


def test_folders_of_clients_are_trained_and_tested_each_on_its_own(tmp_path, capsys):
    rng = np.random.default_rng(0)
    # A class that a client has one picture of is trained on there, and not tested.
    for client, counts in {"anna": {"a": 5, "b": 1}, "bob": {"b": 4}, "eve": {"a": 3}}.items():
        for name, count in counts.items():
            (tmp_path / "data" / client / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (6, 6, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / client / name / f"{i}.png")
    problem = picture_clients.read_problem(natural(tmp_path / "data", tmp_path, image_size=6), 0)
    assert problem.counts.tolist() == [[4, 1], [0, 3], [2, 0]]
    assert problem.owners.tolist() == [0, 1, 2]
    assert problem.test["y"].tolist() == [0, 1, 0]
    federate(natural(tmp_path / "data", tmp_path, image_size=6, name="run"))
    assert "folders of tasks: 3 tasks, 10 train, 3 test" in capsys.readouterr().err


def test_tables_with_a_column_of_clients_are_pixels_or_files(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 4, 4), np.uint8)
    clients, labels = "abbacbb", ["x", "y", "x", "x", "y", "y", "x"]
    header = ["client", "label", *(f"pixel{i}" for i in range(16))]
    rows = [[c, y, *map(str, p.ravel())] for c, y, p in zip(clients, labels, pixels, strict=True)]
    text = "\r\n".join(",".join(row) for row in [header, *rows])
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    lines = []
    for i, (client, label) in enumerate(zip(clients, labels, strict=True)):
        Image.fromarray(pixels[i]).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"client": client, "label": label, "file": f"{i}.png"}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    by_row, by_file = (
        picture_clients.read_problem(natural(tmp_path / name, tmp_path, image_size=4), 0)
        for name in ("a.csv", "a.jsonl")
    )
    for problem in (by_row, by_file):
        # Client c has one example and is not tested.
        assert problem.counts.sum(1).tolist() == [1, 3, 1]
        assert problem.owners.tolist() == [0, 1]
        assert "a.csv: 3 clients, 5 train, 2 test" in problem.notes or problem is by_file
    grey = np.asarray(by_file.data.examples["x"])[..., :1]
    np.testing.assert_array_equal(by_row.data.examples["x"], grey)
    np.testing.assert_array_equal(by_row.data.examples["y"], by_file.data.examples["y"])
    for content, message in (
        ("client,label,p\na,1\n", "a.csv:2: has another number of columns"),
        ("user,label,p\na,1,2\n", "must have client, label, and file or numbers"),
        ("client,label,p\na,1,x\n", "a.csv:2: must have"),
        ("client,label,p\n", "has no rows"),
    ):
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(ValueError, match=message):
            fl.read_clients(tmp_path / "a.csv")


def test_options_reach_the_methods_that_have_them():
    config = FederatedConfig(
        method=("fedspeed", "fedcm", "fedavg"), mixing=0.9, momentum=0.2, server_learning_rate=0.5
    )
    assert config.options("fedspeed") == {"mixing": "alpha"}
    assert config.options("fedcm") == {
        "momentum": "alpha", "server_learning_rate": "server_optimizer"
    }  # fmt: skip
    assert set(FederatedConfig(method=("all",)).methods) == set(fl.ALGORITHMS)
    assert {name: traffic(fl.ALGORITHMS[name](), jnp.zeros(10)) for name in ("fedavg", "fedspeed")}
    for options, message in (
        ({"method": ("fedsped",)}, "did you mean 'fedspeed'"),
        ({"method": ("fedavg",), "rho": 0.1}, "rho is an option of none of fedavg"),
        ({"partition": "dirichlet"}, "partition must be dirichlet:NUMBER"),
        ({"partition": "iid:3"}, "partition must be iid"),
        ({"partition": "dirichlet:x"}, "partition must end in a number"),
        ({"mesh": "data=2"}, "mesh must be clients=N"),
        ({"norm": "batch"}, "norm is for ResNets"),
        ({"rounds": 0}, "rounds must be"),
        (
            {"method": ("fedavg", "fedspeed"), "weighting": "examples"},
            "weighting must be equal for fedspeed",
        ),
        ({"participation": 1.5}, r"participation must be finite and in \(0, 1\], got 1.5"),
        ({"cohort_size": 101}, "cohort_size must be at most 100, got 101"),
        ({"mixing": 2.0}, "^mixing must"),
        ({"method": ("fedcm",), "momentum": -1.0}, "^momentum must"),
        ({"method": ("fedavg",), "server_learning_rate": 0.0}, "^server_learning_rate"),
        ({"partition": "dirichlet:nan"}, "number of partition must be finite"),
        ({"partition": "pathological:2.5"}, "C whole, got 'pathological:2.5'"),
        ({"recipe": "x"}, "recipe must be one of 'plain'"),
    ):
        with pytest.raises(ValueError, match=message):
            FederatedConfig(**options)


def write_cifar(folder, count, seed=0):
    """CIFAR-10 in the official binary format, of random pictures."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = rng.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] = np.arange(count) % 10
        records.tofile(folder / name)
    (folder / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)))


@pytest.mark.slow
def test_resnet_on_cifar_binary_is_killed_and_resumed_to_the_bit(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin", 10)

    def command(name):
        words = (
            f"--data {tmp_path}/cifar-10-batches-bin --recipe cifar10 --model resnet18-gn "
            f"--width 0.125 "
            f"--clients 10 --cohort-size 1 --partition dirichlet:0.6 --samples-per-client 2 "
            f"--local-epochs 1 --batch-size 2 --rounds 6 --evaluate-every 3 --checkpoint-every 1 "
            f"--runs {tmp_path} --name {name}"
        )
        return [sys.executable, "-m", "jaxkit", "federated", *words.split()]

    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    whole = subprocess.run(command("whole"), check=True, text=True, **options)
    assert "CIFAR-10, binary" in whole.stderr
    killed = subprocess.Popen(command("killed"), **options)
    saved = tmp_path / "killed" / "fedspeed-0" / "checkpoints"
    while not list(saved.glob("[1-5]/SHA256SUMS")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (saved / "6").exists()
    subprocess.run(command("killed"), check=True, **options)

    config = FederatedConfig(model="resnet18-gn", width=0.125)
    params, _ = jax.eval_shape(config.network(10, 32, 3).init, jax.random.key(0))
    method = config.algorithm("fedspeed")
    like = jax.eval_shape(lambda p: fl.init_state(method, p, 10, jax.random.key(0)), params)
    runs = [tmp_path / name / "fedspeed-0" for name in ("whole", "killed")]
    ends = [training.read_run(run, like).state for run in runs]
    assert [int(end.round) for end in ends] == [6, 6]
    assert training.fingerprint(ends[0]) == training.fingerprint(ends[1])
    logs = [[row["loss"] for row in training.read_metrics(r / "metrics.jsonl")] for r in runs]
    assert logs[0] == logs[1]
