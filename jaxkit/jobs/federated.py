"""Train one model over simulated clients, by several methods, and compare them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkit import datasets, federated, files, models, plotting, training, validation
from jaxkit.jobs import classify, pages

#: How pictures may be divided, and whether the rule takes a number.
PARTITIONS = {
    "iid": False,
    "dirichlet": True,
    "class-dirichlet": True,
    "pathological": True,
    "natural": False,
}

#: Options of methods by their name there; an option that a method does not have is not given to it.
_OPTIONS = {
    "prox_coef": "prox_coef",
    "rho": "rho",
    "clip_mode": "clip_mode",
    "weighting": "weighting",
    "server_learning_rate": "server_learning_rate",
    "server_momentum": "momentum",
    "b1": "b1",
    "b2": "b2",
    "eps": "eps",
}

_COUNTS = (
    "clients", "samples_per_client", "cohort_size", "rounds", "local_epochs", "batch_size",
    "image_size", "chunk_size", "evaluate_every", "checkpoint_every", "seeds",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FederatedConfig:
    """Train one model over simulated clients by FedSpeed or its baselines; run again to resume.

    Every method and seed is a run of its own in RUNS/NAME, on the same partition for all methods;
    the report compares them. Options of methods are the methods' own defaults unless given.

    Attributes:
        data: digits, pictures in any layout of datasets.find_pictures (CIFAR, IDX, folders, ...),
            or leaf:FOLDER with train/ and test/ of LEAF's JSON.
        layout: the layout of the pictures, where more than one fits.
        partition: iid, dirichlet:A (equal clients, the paper's), class-dirichlet:A (unequal ones),
            pathological:C (C classes a client), or natural (the users of LEAF, the first folders of
            ROOT/CLIENT/CLASS).
        clients: number of clients; a natural partition has its own.
        samples_per_client: examples of a client of dirichlet and pathological; by default all
            examples over the clients.
        participation: chance that a client takes part in a round.
        cohort_size: take exactly so many clients a round instead.
        method: names of federated.ALGORITHMS, or all.
        model: the network; resnet18-gn is the paper's, with two groups of GroupNorm.
        norm: normalization of the ResNet; the running statistics of batch are averaged with the
            weights, and it needs full mini-batches.
        rounds: communication rounds.
        local_epochs: passes of a client over its examples in a round.
        batch_size: examples of a mini-batch.
        drop_remainder: leave out a last mini-batch that is not full.
        learning_rate: of the clients in the first round.
        round_decay: its factor a round.
        weight_decay: coupled weight decay of the clients.
        clip_norm: largest norm of a client's direction; 0 for no clipping.
        prox_coef: 1/lambda of the proximal methods (--lamb of the official program).
        rho: length of the ascent step.
        mixing: weight of the gradient after the ascent step (fedspeed).
        momentum: weight of a client's own gradient (fedcm, mofedsam; --alpha there).
        clip_mode: gradient, or simulator to clip as the official program does.
        server_learning_rate: step of the server, where the method has one.
        server_momentum: of fedavgm.
        b1: decay of the server's mean (fedadam, fedyogi).
        b2: decay of the server's square.
        eps: of the server's step.
        weighting: equal, or examples to weigh clients by their size.
        relaxed_init: beta of the relaxed start (--beta of the official program); 0 for none.
        recipe: plain, cifar10, cifar100, tiny-imagenet or mnist: what is done to the pictures.
        image_size: pixels that pictures get; by default their own, or the recipe's.
        normalization: none, half, ..., or numbers m,m,m/s,s,s; by default the recipe's.
        chunk_size: clients that a device trains at a time; by default all of the cohort.
        on_host: leave pictures and client state in host memory and move only the cohort's part.
        mesh: clients=N divides the clients over N devices; by default one device.
        evaluate_every: rounds between evaluations on the test pictures.
        checkpoint_every: rounds between checkpoints.
        test_fraction: share of each class to test on, where the data have no split.
        seeds: independent runs of each method, with partitions and first weights of their own.
        seed: the first seed.
        runs: folder that holds the runs.
        name: folder of this run in it.

    Example:
        >>> FederatedConfig(method=("fedavg", "fedspeed"), rho=0.05).options("fedavg")
        {}
    """

    data: str = "digits"
    layout: str | None = None
    partition: str = "dirichlet:0.6"
    clients: int = 100
    samples_per_client: int | None = None
    participation: float = 0.1
    cohort_size: int | None = None
    method: tuple[str, ...] = ("fedspeed",)
    model: Literal["logistic", "mlp", "lenet", "vgg11", "resnet18-gn", "resnet18-gn-cifar"] = "mlp"
    norm: Literal["group", "batch"] = "group"
    rounds: int = 100
    local_epochs: int = 5
    batch_size: int = 50
    drop_remainder: bool = False
    learning_rate: float = 0.1
    round_decay: float = 0.998
    weight_decay: float = 1e-3
    clip_norm: float = 10.0
    prox_coef: float | None = None
    rho: float | None = None
    mixing: float | None = None
    momentum: float | None = None
    clip_mode: Literal["gradient", "simulator"] | None = None
    server_learning_rate: float | None = None
    server_momentum: float | None = None
    b1: float | None = None
    b2: float | None = None
    eps: float | None = None
    weighting: Literal["equal", "examples"] | None = None
    relaxed_init: float = 0.0
    recipe: str = "plain"
    image_size: int | None = None
    normalization: str | None = None
    chunk_size: int | None = None
    on_host: bool = False
    mesh: str = ""
    evaluate_every: int = 10
    checkpoint_every: int = 50
    test_fraction: float = 0.2
    seeds: int = 1
    seed: int = 0
    runs: str = "runs"
    name: str = "federated"

    def __post_init__(self):
        for name in self.methods:
            validation.choice("method", name, federated.ALGORITHMS)
        if len(set(self.methods)) < len(self.methods) or not self.methods:
            raise ValueError(f"method must be different names, at least one, got {self.method}")
        kind, coefficient = self.rule
        validation.choice("partition", kind, PARTITIONS)
        if (coefficient is not None) != PARTITIONS[kind]:
            takes = f"{kind}:NUMBER" if PARTITIONS[kind] else kind
            raise ValueError(f"partition must be {takes}, got {self.partition!r}")
        if coefficient is not None:
            whole = kind == "pathological"
            validation.number(
                "number of partition", coefficient, minimum=whole, open_minimum=not whole
            )
            if whole and coefficient % 1:
                raise ValueError(
                    f"partition must be pathological:C, C whole, got {self.partition!r}"
                )
        datasets.picture_recipe(
            self.recipe, image_size=self.image_size, normalization=self.normalization
        )
        for field in _COUNTS:
            if getattr(self, field) is not None:
                validation.integer(field, getattr(self, field), minimum=1)
        if self.cohort_size is not None and self.cohort_size > self.clients and kind != "natural":
            raise ValueError(f"cohort_size must be at most {self.clients}, got {self.cohort_size}")
        validation.seed("seed", self.seed)
        validation.seed("seed + seeds - 1", self.seed + self.seeds - 1)
        for field in ("clip_norm", "relaxed_init", "weight_decay"):
            validation.number(field, getattr(self, field), minimum=0)
        for field in ("participation", "round_decay"):
            share = getattr(self, field)
            validation.number(field, share, minimum=0, maximum=1, open_minimum=True)
        validation.number(
            "test_fraction", self.test_fraction, minimum=0, maximum=1, open_minimum=True,
            open_maximum=True,
        )  # fmt: skip
        for field in ("learning_rate", "server_learning_rate"):
            if getattr(self, field) is not None:
                validation.number(field, getattr(self, field), minimum=0, open_minimum=True)
        if self.mesh and not re.fullmatch(r"clients=[1-9]\d*", self.mesh):
            raise ValueError(f"mesh must be clients=N, got {self.mesh!r}")
        if self.norm == "batch" and not self.model.startswith("resnet"):
            raise ValueError(f"norm is for ResNets, got {self.norm!r} with {self.model!r}")
        if pathlib.PurePath(self.name).name != self.name or self.name.startswith("."):
            raise ValueError(f"name must be a plain folder name, got {self.name!r}")
        known = {key for name in self.methods for key in self.options(name)}
        for field in (*_OPTIONS, "mixing", "momentum"):
            if getattr(self, field) is not None and field not in known:
                raise ValueError(f"{field} is an option of none of {', '.join(self.methods)}")
        for name in self.methods:
            self.algorithm(name)

    @property
    def methods(self) -> tuple[str, ...]:
        """What is compared."""
        return tuple(federated.ALGORITHMS) if self.method == ("all",) else self.method

    @property
    def rule(self) -> tuple[str, Any]:
        """Kind and number of the partition."""
        kind, _, number = self.partition.partition(":")
        try:
            return kind, float(number) if number else None
        except ValueError:
            raise ValueError(f"partition must end in a number, got {self.partition!r}") from None

    def options(self, name: str) -> dict[str, Any]:
        """Options given that a method has, by their name here."""
        takes = inspect.signature(federated.ALGORITHMS[name]).parameters
        found = {field: there for field, there in _OPTIONS.items() if there in takes}
        if "server_optimizer" in takes:
            found["server_learning_rate"] = "server_optimizer"
        if "alpha" in takes:
            found["mixing" if name == "fedspeed" else "momentum"] = "alpha"
        return {field: there for field, there in found.items() if getattr(self, field) is not None}

    def algorithm(self, name: str) -> federated.FederatedAlgorithm:
        """A method with the options given."""
        given = {there: getattr(self, field) for field, there in self.options(name).items()}
        if "server_optimizer" in given:
            given["server_optimizer"] = optax.sgd(given["server_optimizer"])
        client = federated.simulator_sgd(
            self.learning_rate,
            learning_rate_decay=self.round_decay,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm or None,
        )
        try:
            made = federated.ALGORITHMS[name](client, **given)
        except ValueError as error:
            # By the name of the option, which may be another than the argument's.
            fields = {there: field for field, there in self.options(name).items()}
            argument, _, rest = str(error).partition(" ")
            raise ValueError(f"{fields.get(argument, argument)} {rest}") from None
        return federated.with_relaxed_start(made, self.relaxed_init) if self.relaxed_init else made


class Federated(NamedTuple):
    """What a run wrote.

    Attributes:
        folder: of the run.
        report: `report.html`; None if the run was stopped before its end.
        scores: by method, what each seed reached.
    """

    folder: pathlib.Path
    report: pathlib.Path | None
    scores: dict[str, list[dict[str, float]]]


class _Problem(NamedTuple):
    """One seed's clients and test pictures.

    Attributes:
        data: of the clients.
        counts: examples of each class at each client.
        test: `{"x": uint8 [n, S, S, C], "y": int32 [n]}`.
        owners: which client each test picture belongs to, or None.
        notes: what was found.
    """

    data: federated.ClientData
    counts: np.ndarray
    test: dict[str, np.ndarray]
    owners: np.ndarray | None
    notes: tuple[str, ...]


def federate(config: FederatedConfig) -> Federated:
    """Run the methods of a configuration, or go on where their last checkpoints stand.

    Args:
        config: what to train.

    Returns:
        The files and the scores.

    Raises:
        ValueError: if an option or the pictures are faulty, or a folder holds another run.
        OSError: if the disk refuses, or another process writes this run.

    Example:
        >>> federate(FederatedConfig(data="no/such/folder"))
        Traceback (most recent call last):
        ValueError: no/such/folder does not exist
    """
    folder = pathlib.Path(config.runs) / config.name
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in config.methods}
    curves: dict[str, list[Any]] = {name: [] for name in config.methods}
    for seed in range(config.seed, config.seed + config.seeds):
        problem, recipe = _problem(config, seed)
        if seed == config.seed:
            first = problem
            for note in problem.notes:
                training.say(note)
        for name in config.methods:
            found = _run(config, name, seed, problem, recipe, folder / f"{name}-{seed}")
            if found is None:
                training.say(f"stopped in {name}, seed {seed}; run the same command to resume")
                return Federated(folder, None, scores)
            score, history = found
            scores[name].append(score)
            curves[name].append(history)
    return Federated(folder, _report(config, folder, first, scores, curves), scores)


def _problem(config: FederatedConfig, seed: int) -> tuple[_Problem, datasets.PictureRecipe]:
    kind, number = config.rule
    owners = None
    if config.data.startswith("leaf:"):
        root = pathlib.Path(config.data.removeprefix("leaf:"))
        train, test = (federated.read_leaf(root / part) for part in ("train", "test"))
        split = datasets.PictureSplit(
            *(datasets.Pictures(_square(part.examples["x"], root), part.examples["y"])
              for part in (train, test)),
            class_names=(), layout="leaf", notes=(f"LEAF: {len(train.users):,} users",),
        )  # fmt: skip
        natural = train.indices
        numbers = {user: number for number, user in enumerate(train.users)}
        owner = [numbers.get(user, -1) for user in test.users]
        owners = np.repeat(owner, [len(rows) for rows in test.indices])
    else:
        split = classify.labelled_pictures(dataclasses.replace(config, seed=seed))
        tasks = split.train.tasks
        natural = None if tasks is None else [np.flatnonzero(tasks == t) for t in np.unique(tasks)]
        if kind == "natural" and tasks is not None and split.test.tasks is not None:
            owners = np.searchsorted(np.unique(tasks), split.test.tasks)
    recipe = classify.recipe_of(config, split)
    labels = split.train.labels
    if kind == "natural":
        if natural is None:
            raise ValueError("partition must not be natural: these pictures name no clients")
        rows = natural
    elif kind == "iid":
        rows = federated.iid_partition(len(labels), config.clients, seed=seed)
    elif kind == "class-dirichlet":
        rows = federated.class_dirichlet_partition(labels, config.clients, number, seed=seed)
    elif kind == "dirichlet":
        rows = federated.dirichlet_partition(
            labels, config.clients, number, samples_per_client=config.samples_per_client, seed=seed
        )
    else:
        rows = federated.pathological_partition(
            labels, config.clients, int(number) if number == int(number) else number,
            samples_per_client=config.samples_per_client, seed=seed,
        )  # fmt: skip
    classes = max(len(split.class_names), int(max(labels.max(), split.test.labels.max())) + 1)
    pool = {"x": datasets.decode_pictures(split.train, recipe), "y": labels}
    test = {"x": datasets.decode_pictures(split.test, recipe), "y": split.test.labels}
    counts = np.stack([np.bincount(labels[r], minlength=classes) for r in rows])
    sizes = counts.sum(1)
    notes = (
        *split.notes,
        f"{len(rows):,} clients of {sizes.min()} to {sizes.max()} pictures ({config.partition})",
    )
    return _Problem(
        federated.client_data(pool, rows, on_host=config.on_host), counts, test, owners, notes
    ), recipe


def _square(x: np.ndarray, root: pathlib.Path) -> np.ndarray:
    """Rows of pixels as grey pictures."""
    side = round(x[0].size ** 0.5)
    if x.dtype != np.uint8 or (x.ndim == 2 and side**2 != x.shape[1]) or x.ndim not in (2, 3, 4):
        raise ValueError(
            f"{root} must hold pictures of pixels in [0, 1], got x of {x.dtype}{x.shape}"
        )
    return x.reshape(len(x), side, side, 1) if x.ndim == 2 else x.reshape(*x.shape[:3], -1)


class _Network(NamedTuple):
    """A network with what its clients do.

    Attributes:
        params: first weights.
        stats: first statistics of BatchNorm, or an empty dict.
        local: how clients train.
        correct: `(params, stats, test) -> (bool [n], loss)`.
    """

    params: Any
    stats: Any
    local: federated.LocalTraining
    correct: Any


def _network(
    config: FederatedConfig, problem: _Problem, recipe: datasets.PictureRecipe, seed: int
) -> _Network:
    kind = config.model.replace("-gn", "")
    size, channels = recipe.image_size, problem.test["x"].shape[-1]
    model: Any = classify.NETWORKS[kind](problem.counts.shape[1], size, channels)
    if isinstance(model, models.ResNet):
        model = model.clone(norm=config.norm)
    picture = jnp.zeros((1, size, size, channels))
    variables = dict(nn.meta.unbox(jax.jit(model.init)(jax.random.key(seed), picture)))
    params = variables.pop("params")

    def augment(batch, key):
        drawn = recipe.draw_on_device(key, len(batch["y"]))
        return {"x": recipe.prepare({"images": batch["x"], **drawn}), "y": batch["y"]}

    def cross_entropy(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def loss_fn(params, batch, key):
        return cross_entropy(model.apply({"params": params}, batch["x"]), batch["y"]).mean()

    def loss_with_stats(params, stats, batch, key):
        seen = {"params": params, **stats}
        logits, stats = model.apply(seen, batch["x"], train=True, mutable=list(stats))
        return cross_entropy(logits, batch["y"]).mean(), dict(stats)

    def correct(params, stats, test):
        def one(batch):
            logits = model.apply({"params": params, **stats}, recipe.prepare({"images": batch[0]}))
            return logits.argmax(-1) == batch[1], cross_entropy(logits, batch[1])

        count = len(test["y"])
        width = min(500, count)
        room = -count % width
        padded = [jnp.pad(test[k], [(0, room)] + [(0, 0)] * (test[k].ndim - 1)) for k in "xy"]
        batches = jax.tree.map(lambda leaf: leaf.reshape(-1, width, *leaf.shape[1:]), padded)
        right, losses = jax.lax.map(one, batches)
        return right.reshape(-1)[:count], losses.reshape(-1)[:count].mean()

    local = federated.LocalTraining(
        loss_with_stats if variables else loss_fn,
        batch_size=config.batch_size,
        num_epochs=config.local_epochs,
        drop_remainder=config.drop_remainder,
        augment=augment,
    )
    return _Network(params, variables, local, correct)


def _run(
    config: FederatedConfig,
    name: str,
    seed: int,
    problem: _Problem,
    recipe: datasets.PictureRecipe,
    folder: pathlib.Path,
) -> tuple[dict[str, float], list[dict[str, Any]]] | None:
    """One method and seed: scores and history, or None if it was told to stop."""
    network = _network(config, problem, recipe, seed)
    method = config.algorithm(name)
    if network.stats:
        method = federated.with_model_state(method, network.stats, "shared")
    clients = problem.data.num_clients
    if method.full_participation:
        sampler = federated.uniform_sampler(clients, clients)
    elif config.cohort_size is not None:
        sampler = federated.uniform_sampler(clients, config.cohort_size)
    else:
        sampler = federated.bernoulli_sampler(clients, config.participation)
    client_map = federated.vmap_clients(config.chunk_size)
    if config.mesh:
        count = int(config.mesh.removeprefix("clients="))
        if count > jax.device_count():
            raise ValueError(f"mesh must have at most {jax.device_count()} devices, got {count}")
        mesh = federated.clients_mesh(jax.devices()[:count])
        client_map = federated.shard_clients(mesh, chunk_size=config.chunk_size)
    down, up = traffic(method, network.params)
    training.say(
        f"{method.name}, seed {seed}: a client receives {down / 2**20:.2f} MiB and sends "
        f"{up / 2**20:.2f} MiB a round; {config.options(name) or 'its own defaults'}"
    )
    test = jax.tree.map(jnp.asarray, problem.test)
    stats = () if network.stats else ({},)

    def evaluate(*model):
        right, loss = network.correct(*model, *stats, test)
        return {"accuracy": right.mean(), "test_loss": loss}

    result = federated.simulate(
        method, network.local, network.params, problem.data, sampler,
        num_rounds=config.rounds, key=jax.random.key(seed), client_map=client_map,
        evaluate=evaluate, evaluate_every=config.evaluate_every, folder=folder,
        checkpoint_every=config.checkpoint_every, progress=training.Console(config.rounds),
    )  # fmt: skip
    if int(result.state.round) < config.rounds:
        return None
    model = [result.state.params]
    model += [result.state.shared["model_state"]] if not stats else stats
    right = np.asarray(jax.jit(network.correct)(*model, test)[0], float)
    accuracies = [row["accuracy"] for row in result.history if "accuracy" in row]
    each = _by_client(problem, right)
    shares = sum(row["num_participants"] for row in result.history)
    score = {
        "best": max(accuracies),
        "last": accuracies[-1],
        "client_mean": float(each.mean()),
        "client_10th_percentile": float(np.quantile(each, 0.1)),
        "client_worst": float(each.min()),
        "bytes_down": float(down * shares),
        "bytes_up": float(up * shares),
    }
    return score, result.history


def traffic(method: federated.FederatedAlgorithm, params: Any) -> tuple[int, int]:
    """Bytes that one client receives and sends in a round.

    Example:
        >>> traffic(federated.scaffold(), {"w": jnp.zeros(10)})
        (80, 80)
    """
    from jaxkit.federated import algorithm

    def message(params):
        shared, memory = method.init_shared(params), method.init_memory(params)
        state = {**shared, **memory}.get("model_state")
        delta = algorithm.zeros(params)
        offset = {} if method.relaxation is None else {"offset": delta}
        one = jnp.ones(())
        result = algorithm.LocalResult(delta, offset, one, params, jnp.int32(0), state)
        return method.report(shared, memory, result)[0]

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    shared = jax.eval_shape(method.init_shared, params)
    return size(params) + size(shared), size(jax.eval_shape(message, params))


def _by_client(problem: _Problem, right: np.ndarray) -> np.ndarray:
    """Accuracy for each client: on its own test pictures, or on classes as it holds them."""
    if problem.owners is not None:
        clients = np.unique(problem.owners[problem.owners >= 0])
        return np.array([right[problem.owners == client].mean() for client in clients])
    labels, classes = problem.test["y"], problem.counts.shape[1]
    tested = np.bincount(labels, minlength=classes)
    accuracy = np.bincount(labels, right, minlength=classes) / np.maximum(tested, 1)
    held = problem.counts * (tested > 0)
    return (held @ accuracy) / np.maximum(held.sum(1), 1)


def _report(
    config: FederatedConfig,
    folder: pathlib.Path,
    problem: _Problem,
    scores: Mapping[str, Sequence[Mapping[str, float]]],
    curves: Mapping[str, Sequence[Any]],
) -> pathlib.Path:
    """The methods beside each other: accuracy by round and by bytes, by client, and the clients."""
    columns = ("method", "best", "last", "mean client", "10 %", "worst", "sent", "received")
    rows: list[Sequence[str]] = []
    for name in sorted(scores, key=lambda n: -np.mean([s["best"] for s in scores[n]])):
        found = {key: np.array([s[key] for s in scores[name]]) for key in scores[name][0]}
        spread = f" ± {100 * found['best'].std(ddof=1):.2f}" if config.seeds > 1 else ""
        percent = [f"{100 * found[k].mean():.2f}" for k in list(found)[:5]]
        gigabytes = [f"{found[k].mean() / 1e9:.3f} GB" for k in ("bytes_up", "bytes_down")]
        rows.append((name, percent[0] + spread, *percent[1:], *gigabytes))
    for cells in (columns, *rows):
        training.say("  ".join(f"{cell:<14}" for cell in cells).rstrip(), out=True)
    own = "its own test pictures" if problem.owners is not None else (
        "the test pictures, weighted by the classes that it holds"
    )  # fmt: skip
    caption = (
        f"Test accuracy in percent after {config.rounds} rounds, means of {config.seeds} seeds "
        f"(best over the evaluations ± deviation, and last); of the last model for each client on "
        f"{own}: mean, 10th percentile, worst; bytes of all clients and rounds"
    )
    by_round, by_bytes = {}, {}
    for name, histories in curves.items():
        seen = [[row for row in history if "accuracy" in row] for history in histories]
        steps = [row["step"] for row in seen[0]]
        mean = np.mean([[row["accuracy"] for row in one] for one in seen], 0)
        by_round[name] = [
            {"step": s, "accuracy": float(a)} for s, a in zip(steps, mean, strict=True)
        ]
        total = np.mean([s["bytes_up"] + s["bytes_down"] for s in scores[name]]) / 1e9
        by_bytes[name] = (np.array(steps) / config.rounds * total, mean)
    figure, panel = plotting.axes(width=6.4, height=3.8)
    plotting.lines(panel, by_bytes, xlabel="gigabytes, both ways", ylabel="accuracy", title="")
    figures = {
        "accuracy by round": federated.accuracy_figure(by_round),
        "accuracy by bytes": figure,
        "classes of the clients": federated.label_distribution_figure(
            {config.partition: problem.counts}
        ),
    }
    files.write_atomically(folder / "scores.json", json.dumps(scores))
    path = files.write_atomically(
        folder / "report.html",
        pages.page(
            f"Federated training on {config.data}",
            [
                *(f"<p>{pages.text(note)}</p>" for note in problem.notes),
                pages.table(columns, rows, caption=caption),
                *(plotting.html_image(drawn, name) for name, drawn in figures.items()),
                pages.facts(dataclasses.asdict(config)),
            ],
        ),
    )
    training.say(f"report  {path}", out=True)
    return path
