"""Train one model over simulated clients, by several methods, and compare them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkit import federated, files, plotting, training, validation
from jaxkit.jobs import options, pages, picture_clients, picture_problem

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
    **{name: name for name in ("prox_coef", "rho", "clip_mode", "weighting")},
    **{name: name for name in ("server_learning_rate", "b1", "b2", "eps")},
    "server_momentum": "momentum",
}


@dataclasses.dataclass(frozen=True)
class FederatedConfig(picture_problem.PictureConfig):
    """Train one model over simulated clients by FedSpeed or its baselines; run again to resume.

    Every method and seed is a run of its own in RUNS/NAME, on the same partition for all methods;
    the report compares them. Options of methods are the methods' own defaults unless given.
    Pictures and network are those of PictureConfig.

    Attributes:
        data: digits, pictures in any layout of datasets.find_pictures (CIFAR, IDX, folders, ...),
            leaf:FOLDER with train/ and test/ of LEAF's JSON (and in it the pictures that these
            name), or a file .csv or .jsonl with client, label, and file or pixels
            (federated.read_clients).
        partition: iid, dirichlet:A (equal clients, the paper's), class-dirichlet:A (unequal ones),
            pathological:C (C classes a client), or natural (the users of LEAF, the first folders of
            ROOT/CLIENT/CLASS).
        clients: number of clients; a natural partition has its own.
        samples_per_client: examples of a client of dirichlet and pathological; by default all
            examples over the clients.
        participation: chance that a client takes part in a round.
        cohort_size: take exactly so many clients a round instead.
        method: names of federated.ALGORITHMS, or all.
        norm: normalization of a ResNet, group or batch, by default its own; the running statistics
            of batch are averaged with the weights, and it needs full mini-batches.
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
        chunk_size: clients that a device trains at a time; by default all of the cohort if the
            network is a perceptron, otherwise one.
        on_host: leave pictures and client state in host memory and move only the cohort's part.
        mesh: clients=N divides the clients over N devices; by default one device.
        evaluate_every: rounds between evaluations on the test pictures.
        checkpoint_every: rounds between checkpoints.
    """

    partition: str = "dirichlet:0.6"
    clients: int = 100
    samples_per_client: int | None = None
    participation: float = 0.1
    cohort_size: int | None = None
    method: tuple[str, ...] = ("fedspeed",)
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
    chunk_size: int | None = None
    on_host: bool = False
    mesh: str = ""
    evaluate_every: int = 10
    checkpoint_every: int = 50
    name: str = "federated"

    def __post_init__(self):
        super().__post_init__()
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
        options.at_least_one(
            self, "clients", "samples_per_client", "cohort_size", "rounds", "local_epochs",
            "batch_size", "chunk_size", "evaluate_every", "checkpoint_every",
        )  # fmt: skip
        if self.cohort_size is not None and self.cohort_size > self.clients and kind != "natural":
            raise ValueError(f"cohort_size must be at most {self.clients}, got {self.cohort_size}")
        options.within(self, {"minimum": 0}, "clip_norm", "relaxed_init", "weight_decay")
        options.within(self, options.SHARE, "participation", "round_decay")
        options.within(self, options.POSITIVE, "learning_rate", "server_learning_rate")
        if self.mesh and not re.fullmatch(r"clients=[1-9]\d*", self.mesh):
            raise ValueError(f"mesh must be clients=N, got {self.mesh!r}")
        known = {key for name in self.methods for key in self.options(name)}
        for field in (*_OPTIONS, "mixing", "momentum"):
            if getattr(self, field) is not None and field not in known:
                raise ValueError(f"{field} is an option of none of {', '.join(self.methods)}")
        for name in self.methods:
            self.algorithm(name)
            if self.weighting == "examples" and "weighting" not in self.options(name):
                raise ValueError(
                    f"weighting must be equal for {name}, whose clients' own vectors balance at "
                    "equal weights only"
                )

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


def federate(config: FederatedConfig) -> picture_problem.Compared:
    """Run the methods of a configuration, or go on where their last checkpoints stand.

    Each method and seed has a folder of its own in that of the run, and resumes there.
    """
    folder = pathlib.Path(config.runs) / config.name
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in config.methods}
    curves: dict[str, list[Any]] = {name: [] for name in config.methods}
    for seed in range(config.seed, config.seed + config.seeds):
        problem = picture_clients.read_problem(config, seed)
        if seed == config.seed:
            first = problem
            for note in problem.notes:
                training.say(note)
        for name in config.methods:
            found = _run(config, name, seed, problem, folder / f"{name}-{seed}")
            if found is None:
                training.say(f"stopped in {name}, seed {seed}; run the same command to resume")
                return picture_problem.Compared(folder, None, scores)
            score, history = found
            scores[name].append(score)
            curves[name].append(history)
    return picture_problem.Compared(folder, _report(config, folder, first, scores, curves), scores)


def _run(
    config: FederatedConfig,
    name: str,
    seed: int,
    problem: picture_clients.Problem,
    folder: pathlib.Path,
) -> tuple[dict[str, float], list[dict[str, Any]]] | None:
    """One method and seed: scores and history, or None if it was told to stop."""
    params, stats = jax.jit(problem.network.init)(jax.random.key(seed))
    method = config.algorithm(name)
    if stats:
        method = federated.with_model_state(method, stats, "shared")
    clients = problem.data.num_clients
    if method.full_participation:
        sampler = federated.uniform_sampler(clients, clients)
    elif config.cohort_size is not None:
        sampler = federated.uniform_sampler(clients, config.cohort_size)
    else:
        sampler = federated.bernoulli_sampler(clients, config.participation)
    # Many kernels at once are grouped convolutions, slower than one client after another.
    chunk_size = config.chunk_size or (None if config.model in ("logistic", "mlp") else 1)
    client_map = federated.vmap_clients(chunk_size)
    if config.mesh:
        count = int(config.mesh.removeprefix("clients="))
        if count > jax.device_count():
            raise ValueError(f"mesh must have at most {jax.device_count()} devices, got {count}")
        mesh = federated.clients_mesh(jax.devices()[:count])
        client_map = federated.shard_clients(mesh, chunk_size=chunk_size)
    down, up = traffic(method, params)
    training.say(
        f"{method.name}, seed {seed}: a client receives {down / 2**20:.2f} MiB and sends "
        f"{up / 2**20:.2f} MiB a round; {config.options(name) or 'its own defaults'}"
    )
    test = jax.tree.map(jnp.asarray, problem.test)

    def evaluate(params, stats=stats):
        right, loss = problem.correct(params, stats, test)
        return {"accuracy": right.mean(), "test_loss": loss}

    result = federated.simulate(
        method, problem.local(config, bool(stats)), params, problem.data, sampler,
        num_rounds=config.rounds, key=jax.random.key(seed), client_map=client_map,
        evaluate=evaluate, evaluate_every=config.evaluate_every, folder=folder,
        checkpoint_every=config.checkpoint_every, progress=training.Console(config.rounds),
    )  # fmt: skip
    if int(result.state.round) < config.rounds:
        return None
    stats = result.state.shared["model_state"] if stats else stats
    right = np.asarray(jax.jit(problem.correct)(result.state.params, stats, test)[0], float)
    accuracies = [row["accuracy"] for row in result.history if "accuracy" in row]
    each = problem.by_client(right)
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
    """Bytes that one client receives and sends in a round."""
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


def _report(
    config: FederatedConfig,
    folder: pathlib.Path,
    problem: picture_clients.Problem,
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
    return pages.write_comparison(
        folder / "report.html", f"Federated training on {config.data}", problem.notes, columns,
        rows, (plotting.html_image(drawn, name) for name, drawn in figures.items()),
        caption=caption, options=dataclasses.asdict(config),
    )  # fmt: skip
