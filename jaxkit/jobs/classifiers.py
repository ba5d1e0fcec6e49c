"""The program of `jaxkit classify`: every classifier of one budget in one compiled step."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkit import datasets, training, validation, width
from jaxkit.convolutions import channels_last
from jaxkit.jobs import private_classifier

if TYPE_CHECKING:
    from jaxkit.jobs.classify import ClassifyConfig


class Classifiers(NamedTuple):
    """All classifiers of one budget; every leaf is `[seeds, variants, ...]`.

    Attributes:
        params: of the networks.
        stats: running statistics of their BatchNorm, if they have any.
        opt_state: of the optimizer.
    """

    params: Any
    stats: Any
    opt_state: Any


class Program:
    """The compiled steps of a run and the batches they read."""

    def __init__(
        self,
        config: ClassifyConfig,
        split: datasets.PictureSplit,
        recipe: datasets.PictureRecipe,
        mesh: jax.sharding.Mesh,
        folder: pathlib.Path,
        *,
        fresh: bool,
    ):
        self._config, self._split, self._recipe, self._mesh = config, split, recipe, mesh
        sizes = (len(split.class_names), recipe.image_size, split.train.channels)
        self._network, self._scaling = config.network(*sizes), None
        if config.base_width is not None:
            self._at_base_width(config, config.base_width, sizes)
        self._direction: Any = config.direction(self._scaling)
        self.steps, self.private = config.num_steps(len(split.train)), None
        if config.private:
            self.private = private_classifier.PrivatePictures.planned(
                config, self._network, split.train, recipe, self.steps[0], mesh, folder,
                fresh=fresh,
            )  # fmt: skip
            self._direction = self.private.plan.optimizer(self._direction)
        self._rates: dict[int, np.ndarray] = {}
        self._streams: list[Any] = []
        self._position = (-1, -1)
        advance = self._advance_privately if config.private else self._advance_all
        self._advance = jax.jit(advance, donate_argnums=0)
        self._correct = jax.jit(self._correct_all)

    def _at_base_width(
        self, config: ClassifyConfig, base: float, sizes: tuple[int, int, int]
    ) -> None:
        """Learn from the shapes of narrower and wider networks how each parameter scales."""
        self._base, double = (config.network(*sizes, factor * base) for factor in (1, 2))
        shapes = [
            jax.eval_shape(lambda key, made=made: made.init(key)[0], jax.random.key(0))
            for made in (self._base, self._network, double)
        ]
        self._scaling = width.width_scaling(shapes[0], shapes[1], delta=shapes[2])
        multiplier = width.readout_multiplier(
            *(made["head"]["kernel"].shape[0] for made in shapes[1::-1])
        )
        self._network = self._network._replace(logit_scale=multiplier)

    def init(self, budget: int) -> Classifiers:
        """First weights, the same for every variant of a seed."""

        def one(key: jax.Array) -> Classifiers:
            params, stats = self._network.init(key)
            if self._scaling is not None:
                like = self._base.init(key)[0]
                params = width.match_initial_scale(params, like, self._scaling.init_std)
            return Classifiers(params, stats, self._direction.init(params))

        config = self._config
        keys = jnp.stack(
            [
                jax.random.fold_in(jax.random.key(config.seed + seed), budget)
                for seed in range(config.seeds)
            ]
        )
        variants = len(config.variants)
        state = jax.vmap(one)(keys)
        state = jax.tree.map(lambda x: jnp.repeat(x[:, None], variants, 1), state)
        if validation.is_traced(jax.tree.leaves(state)[0]):
            return state
        return jax.device_put(state, training.replicated(self._mesh))

    def step(self, state: Classifiers, budget: int, local: int) -> tuple[Classifiers, jax.Array]:
        """Make update `local` of a budget; returns the losses `[seeds, variants]` before it."""
        if budget not in self._rates:
            self._rates = {budget: self._config.rates(self.steps[budget])}
        batch = self.private.batch(local) if self.private else self._batch(budget, local)
        return self._advance(state, batch, self._rates[budget][local])

    def score(self, state: Classifiers) -> np.ndarray:
        """Share of the test pictures that each classifier gets right, `[seeds, variants]`."""
        correct, test = 0, self._split.test
        for start in range(0, len(test), 512):
            rows = np.arange(start, min(start + 512, len(test)))
            images = datasets.decode_pictures(test, self._recipe, rows)
            # The last batch is filled up, so that one program serves all.
            room = [(0, 512 - len(rows)), (0, 0), (0, 0), (0, 0)]
            labels = np.pad(test.labels[rows], room[0], constant_values=-1)
            correct = correct + self._correct(state, np.pad(images, room), labels)
        return np.asarray(correct) / len(test)

    def close(self) -> None:
        """End the threads and processes that decode."""
        for stream in self._streams:
            stream.close()

    def _batch(self, budget: int, local: int) -> dict[str, jax.Array]:
        config = self._config
        if self._position != (budget, local):
            self.close()
            index, count = training.local_rows(self._mesh, config.batch_size)
            self._streams = [
                datasets.picture_batches(
                    self._split.train, self._recipe, batch_size=config.batch_size,
                    seed=config.seed + seed, process_index=index, process_count=count,
                    num_workers=config.num_workers,
                )
                for seed in range(config.seeds)
            ]  # fmt: skip
            for stream in self._streams:
                stream.set_state({**stream.get_state(), "step": local})
        self._position = (budget, local + 1)
        parts = [next(stream) for stream in self._streams]
        rows = training.batch_sharding(self._mesh).spec
        sharding = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec(None, *rows))
        return {
            name: jax.make_array_from_process_local_data(
                sharding, np.stack([part[name] for part in parts])
            )
            for name in ("images", "labels", "flip", "offset")
        }

    def _advance_all(self, state: Classifiers, batch: Any, rates: Any):
        several = jax.vmap(self._advance_one, (0, None, None, 0))
        images = jax.vmap(self._recipe.prepare)(batch)
        return jax.vmap(several, (0, 0, 0, None))(state, images, batch["labels"], rates)

    def _advance_one(self, state: Classifiers, images: Any, labels: Any, rate: Any):
        gradient = channels_last(jax.value_and_grad(self._network.loss, has_aux=True))
        (loss, stats), grads = gradient(state.params, state.stats, images, labels)
        updates, opt_state = self._direction.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        return Classifiers(optax.apply_updates(state.params, updates), stats, opt_state), loss

    def _advance_privately(self, state: Classifiers, batch: Any, rates: Any):
        one = jax.tree.map(lambda leaf: leaf[0, 0], state)
        assert self.private is not None
        total, noise_key = self.private.gradient(one.params, batch)
        updates, opt_state = self._direction.update(total, one.opt_state, one.params, key=noise_key)
        updates = jax.tree.map(lambda u: -rates[0] * u, updates)
        after = Classifiers(optax.apply_updates(one.params, updates), one.stats, opt_state)
        loss = total.loss / jnp.maximum(total.count - total.non_finite, 1)
        return jax.tree.map(lambda leaf: leaf[None, None], (after, loss))

    def _correct_all(self, state: Classifiers, images: Any, labels: Any) -> jax.Array:
        images = self._recipe.prepare({"images": images})

        @channels_last
        def one(params: Any, stats: Any) -> jax.Array:
            logits, _ = self._network.logits(params, stats, images)
            return (logits.argmax(-1) == labels).sum()

        return jax.vmap(jax.vmap(one))(state.params, state.stats)
