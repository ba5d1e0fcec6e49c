"""Pictures divided over clients, and what they train and are tested by: `jaxkit federated`."""

from __future__ import annotations

import itertools
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkit import datasets, federated
from jaxkit.convolutions import channels_last
from jaxkit.jobs import picture_problem

if TYPE_CHECKING:
    from jaxkit.jobs.federated import FederatedConfig


class Problem(NamedTuple):
    """One seed's clients, their network and the test pictures.

    Attributes:
        data: of the clients, from `federated.client_data`.
        counts: examples of each class at each client.
        test: `{"x": uint8 [n, S, S, C], "y": int32 [n]}`.
        owners: which client each test picture belongs to, or None.
        notes: what was found.
        network: for these pictures.
        recipe: what is done to them.
    """

    data: Any
    counts: np.ndarray
    test: dict[str, np.ndarray]
    owners: np.ndarray | None
    notes: tuple[str, ...]
    network: picture_problem.Network
    recipe: datasets.PictureRecipe

    def local(self, config: FederatedConfig, has_stats: bool) -> federated.LocalTraining:
        """How clients train; with running statistics the loss returns them too."""

        def augment(batch, key):
            drawn = self.recipe.draw_on_device(key, len(batch["y"]))
            return {"x": self.recipe.prepare({"images": batch["x"], **drawn}), "y": batch["y"]}

        def loss_fn(params, batch, key):
            return self.network.loss(params, {}, batch["x"], batch["y"])[0]

        def loss_with_stats(params, stats, batch, key):
            return self.network.loss(params, stats, batch["x"], batch["y"])

        return federated.LocalTraining(
            loss_with_stats if has_stats else loss_fn,
            batch_size=config.batch_size,
            num_epochs=config.local_epochs,
            drop_remainder=config.drop_remainder,
            augment=augment,
        )

    def correct(self, params: Any, stats: Any, test: Any) -> tuple[jax.Array, jax.Array]:
        """Which test pictures are classified rightly, bool `[n]`, and their mean loss."""

        @channels_last
        def one(batch):
            images = self.recipe.prepare({"images": batch[0]})
            logits, _ = self.network.logits(params, stats, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
            return logits.argmax(-1) == batch[1], losses

        count = len(test["y"])
        width = min(500, count)
        room = -count % width
        padded = [jnp.pad(test[k], [(0, room)] + [(0, 0)] * (test[k].ndim - 1)) for k in "xy"]
        batches = jax.tree.map(lambda leaf: leaf.reshape(-1, width, *leaf.shape[1:]), padded)
        right, losses = jax.lax.map(one, batches)
        return right.reshape(-1)[:count], losses.reshape(-1)[:count].mean()

    def by_client(self, right: np.ndarray) -> np.ndarray:
        """Accuracy for each client: on its own test pictures, or on classes as it holds them."""
        if self.owners is not None:
            clients = np.unique(self.owners[self.owners >= 0])
            return np.array([right[self.owners == client].mean() for client in clients])
        labels, classes = self.test["y"], self.counts.shape[1]
        tested = np.bincount(labels, minlength=classes)
        accuracy = np.bincount(labels, right, minlength=classes) / np.maximum(tested, 1)
        held = self.counts * (tested > 0)
        return (held @ accuracy) / np.maximum(held.sum(1), 1)


class Natural(NamedTuple):
    """Pictures that name their clients.

    Attributes:
        split: the pictures.
        rows: training pictures of each client.
        owners: the client of each test picture, -1 for one that trains nothing, or None.
    """

    split: datasets.PictureSplit
    rows: list[np.ndarray] | None
    owners: np.ndarray | None


def read_problem(config: FederatedConfig, seed: int) -> Problem:
    """Read the pictures of a configuration and divide them as its partition says."""
    found = _natural(config, seed)
    split, labels = found.split, found.split.train.labels
    recipe = config.transform(split.train)
    rows = _partition(config, labels, found.rows, seed)
    classes = max(len(split.class_names), int(max(labels.max(), split.test.labels.max())) + 1)
    pool = {"x": datasets.decode_pictures(split.train, recipe), "y": labels}
    test = {"x": datasets.decode_pictures(split.test, recipe), "y": split.test.labels}
    counts = np.stack([np.bincount(labels[r], minlength=classes) for r in rows])
    sizes = counts.sum(1)
    divided = (
        f"{len(rows):,} clients of {sizes.min()} to {sizes.max()} pictures ({config.partition})"
    )
    return Problem(
        federated.client_data(pool, rows, on_host=config.on_host),
        counts,
        test,
        found.owners if config.rule[0] == "natural" else None,
        (*split.notes, divided),
        config.network(classes, recipe.image_size, test["x"].shape[-1]),
        recipe,
    )


def _partition(
    config: FederatedConfig, labels: np.ndarray, natural: list[np.ndarray] | None, seed: int
) -> list[np.ndarray]:
    kind, number = config.rule
    size = config.samples_per_client
    if kind == "natural":
        if natural is None:
            raise ValueError("partition must not be natural: these pictures name no clients")
        return natural
    if kind == "iid":
        return federated.iid_partition(len(labels), config.clients, seed=seed)
    if kind == "class-dirichlet":
        return federated.class_dirichlet_partition(labels, config.clients, number, seed=seed)
    if kind == "dirichlet":
        return federated.dirichlet_partition(
            labels, config.clients, number, samples_per_client=size, seed=seed
        )
    return federated.pathological_partition(
        labels, config.clients, int(number), samples_per_client=size, seed=seed
    )


def _natural(config: FederatedConfig, seed: int) -> Natural:
    if config.data.startswith("leaf:"):
        root = pathlib.Path(config.data.removeprefix("leaf:"))
        train, test = (federated.read_clients(root / part) for part in ("train", "test"))
        note = f"LEAF: {len(train.users):,} users"
        numbers = {user: number for number, user in enumerate(train.users)}
        owners = [numbers.get(user, -1) for user in test.users]
        owners = np.repeat(owners, [len(rows) for rows in test.indices])
        parts = [_pictures(part.examples, root) for part in (train, test)]
        split = datasets.PictureSplit(parts[0], parts[1], (), "leaf", (note,))
        return Natural(split, train.indices, owners)
    if config.data.endswith((".csv", ".jsonl")):
        return _read_table(config, seed)
    by_client = {"prefer": "task-folders", "lone": "train"}
    split = config.pictures(seed, **(by_client if config.rule[0] == "natural" else {}))
    clients, tested = split.train.tasks, split.test.tasks
    if clients is None or tested is None:
        return Natural(split, None, None)
    numbers = np.unique(clients)
    rows = [np.flatnonzero(clients == number) for number in numbers]
    return Natural(split, rows, np.searchsorted(numbers, tested))


def _read_table(config: FederatedConfig, seed: int) -> Natural:
    """A table with a column of clients, each of whom keeps a share to test on if it has two."""
    path = pathlib.Path(config.data)
    found = federated.read_clients(path)
    whole = _pictures(found.examples, path)
    rng = np.random.default_rng(seed)
    rows, tested = [], []
    for mine in found.indices:
        count = min(max(round(config.test_fraction * len(mine)), 1), len(mine) - 1)
        mine = rng.permutation(mine)
        tested.append(np.sort(mine[:count]))
        rows.append(np.sort(mine[count:]))
    owners = np.repeat(np.arange(len(rows)), list(map(len, tested)))
    if not len(owners):
        raise ValueError(f"{path}: no client has two examples, one to train and one to test on")
    train, test = (whole.where(np.concatenate(part)) for part in (rows, tested))
    edges = np.cumsum([0, *map(len, rows)])
    note = f"{path.name}: {len(rows):,} clients, {len(train):,} train, {len(test):,} test"
    split = datasets.PictureSplit(train, test, found.labels, "table", (note,))
    indices = [np.arange(start, stop) for start, stop in itertools.pairwise(edges)]
    return Natural(config.kept(split), indices, owners)


def _pictures(examples: dict[str, np.ndarray], place: pathlib.Path) -> datasets.Pictures:
    x, labels = examples["x"], examples["y"]
    if x.dtype.kind == "U":
        folder = place if place.is_dir() else place.parent
        return datasets.Pictures(datasets.PictureFiles(folder, tuple(x.tolist())), labels)
    return datasets.Pictures(_square(x, place), labels)


def _square(x: np.ndarray, root: pathlib.Path) -> np.ndarray:
    """Rows of pixels as grey pictures."""
    side = round(x[0].size ** 0.5)
    if x.dtype != np.uint8 or (x.ndim == 2 and side**2 != x.shape[1]) or x.ndim not in (2, 3, 4):
        raise ValueError(
            f"{root} must hold pictures of pixels in [0, 1], got x of {x.dtype}{x.shape}"
        )
    return x.reshape(len(x), side, side, 1) if x.ndim == 2 else x.reshape(*x.shape[:3], -1)
