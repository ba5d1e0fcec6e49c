"""A classifier under differential privacy for each picture: gradient, batches, noise, cost."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkit import datasets, privacy, training
from jaxkit.jobs import private_training
from jaxkit.jobs.picture_problem import Network

if TYPE_CHECKING:
    from jaxkit.jobs.classify import ClassifyConfig


def clipped_picture_grad(
    network: Network,
    recipe: datasets.PictureRecipe,
    clip_norm: float,
    *,
    augmentations: int = 1,
    mesh: jax.sharding.Mesh | None = None,
) -> privacy.ClippedGradient:
    """Clip the mean gradient of several augmentations of each picture, and sum.

    Source: De et al. 2022, arXiv 2204.13650 §3.3 (augmentation multiplicity).
    """
    _, stats = jax.eval_shape(network.init, jax.random.key(0))
    if stats:
        raise ValueError("norm must be group in private training: batch couples the pictures")
    recipe.draw_on_device(jax.random.key(0), 1)  # refuses what cannot be drawn there

    def loss(params: Any, picture: Mapping[str, Any], key: Any) -> jax.Array:
        images = jnp.broadcast_to(picture["images"], (augmentations, *picture["images"].shape))
        drawn = recipe.draw_on_device(key, augmentations)
        logits, _ = network.logits(params, {}, recipe.prepare({"images": images, **drawn}))
        labels = jnp.broadcast_to(picture["labels"], (augmentations,))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    # A picture's augmentations are to it what the examples of one person are to that person.
    return privacy.clipped_grad_sum(loss, clip_norm, unit="user", mesh=mesh)


@dataclasses.dataclass(frozen=True)
class PrivatePictures:
    """Batches drawn at random for each step, and the plan that they belong to.

    Attributes:
        plan: gradient, sampling, noise and their cost.
        source: of noise and batches.
        pictures: to draw from.
        recipe: what is done to them.
        mesh: of the devices.
        seed: of the augmentations, which hide nothing.
    """

    plan: privacy.PrivacyPlan
    source: privacy.NoiseSource
    pictures: datasets.Pictures
    recipe: datasets.PictureRecipe
    mesh: jax.sharding.Mesh
    seed: int

    @classmethod
    def planned(
        cls,
        config: ClassifyConfig,
        network: Network,
        pictures: datasets.Pictures,
        recipe: datasets.PictureRecipe,
        num_steps: int,
        mesh: jax.sharding.Mesh,
        folder: pathlib.Path,
        *,
        fresh: bool,
    ) -> PrivatePictures:
        """Find the noise for the budget of a configuration."""
        gradient = clipped_picture_grad(
            network, recipe, config.privacy.clip_norm, augmentations=config.augmentations,
            mesh=mesh if mesh.size > 1 else None,
        )  # fmt: skip
        plan = private_training.plan_within(
            config.privacy, gradient, len(pictures), config.batch_size, num_steps,
            multiple=mesh.shape["data"] * mesh.shape["fsdp"], folder=folder,
        )  # fmt: skip
        told = pictures.fingerprint()
        source = private_training.noise_source(config.privacy, folder, told, fresh=fresh)
        return cls(plan, source, pictures, recipe, mesh, config.seed)

    @property
    def statement(self) -> str:
        """The guarantee of the whole run, in words."""
        return f"{self.plan.statement(self.source, unit='picture')}\nNoise: {self.source!r}."

    def budget_row(self, step: int) -> dict[str, float]:
        """Epsilon spent."""
        return private_training.budget_row(self.plan, step, self.source)

    def batch(self, step: int) -> dict[str, Any]:
        """The pictures of a step with its keys; each step is drawn once."""
        drawn = jax.device_get(self.plan.draw(self.source, step))
        index, count = training.local_rows(self.mesh, len(drawn.mask))
        size = len(drawn.mask) // count
        rows = slice(index * size, (index + 1) * size)
        indices = np.asarray(drawn.indices[rows])
        parts = {
            "images": datasets.decode_pictures(self.pictures, self.recipe, indices),
            "labels": self.pictures.labels[indices],
            "mask": drawn.mask[rows],
        }
        placed: dict[str, Any] = training.place_batch(parts, self.mesh)
        noise = self.plan.noise_key(self.source, step)
        augmentation = jax.random.fold_in(jax.random.key(self.seed), step)
        keys = {"noise": noise, "augmentation": augmentation}
        return placed | {name: np.asarray(jax.random.key_data(key)) for name, key in keys.items()}

    def gradient(self, params: Any, batch: Mapping[str, Any]) -> tuple[privacy.BoundedSum, Any]:
        """The clipped sum of a batch, and the key of its noise."""
        rows = {name: batch[name] for name in ("images", "labels")}
        keys = [jax.random.wrap_key_data(batch[name]) for name in ("augmentation", "noise")]
        return self.plan.gradient(params, rows, keys[0], batch["mask"]), keys[1]
