"""Pre-training a small backbone, for people without a checkpoint."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxkit import models, training, validation
from jaxkit.continual.streams import check_images


def tiny_vision_transformer(
    image_size: int = 8, channels: int = 1, num_classes: int = 10
) -> models.VisionTransformer:
    """A transformer that learns digits within seconds: width 48, 4 blocks, patches of half a side.

    Example:
        >>> tiny_vision_transformer().num_tokens
        5
    """
    return models.VisionTransformer(
        image_size, image_size // 2, channels, width=48, depth=4, num_heads=4, mlp_dim=96,
        num_classes=num_classes,
    )  # fmt: skip


def photometric_augment(
    key: Key[Array, ""], images: Float[Array, "B H W C"]
) -> Float[Array, "B H W C"]:
    """Change each image's contrast (0.4 to 1) and brightness (by 0.2 at most), add noise (0.2)."""
    contrast_key, brightness_key, level_key, noise_key = jax.random.split(key, 4)
    shape = (len(images), 1, 1, 1)
    contrast = jax.random.uniform(contrast_key, shape, minval=0.4, maxval=1.0)
    brightness = jax.random.uniform(brightness_key, shape, minval=-0.2, maxval=0.2)
    level = jax.random.uniform(level_key, shape, maxval=0.2)
    noise = level * jax.random.normal(noise_key, images.shape)
    return contrast * images + brightness + noise


def pretrain_backbone(
    key: Key[Array, ""],
    model: models.VisionTransformer,
    images: Float[np.ndarray, "n H W C"],
    labels: Int[np.ndarray, " n"],
    *,
    num_epochs: int = 120,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    warmup_steps: int = 50,
) -> PyTree:
    """Train a backbone as a classifier with AdamW: warm-up, cosine, photometric augmentation.

    Args:
        key: typed key.
        model: with a head of at least as many classes as there are labels.
        images: in [0, 1].
        labels: integers from 0.
        num_epochs: passes over the images.
        batch_size: images a step; the last, smaller batch of a pass is left out.
        learning_rate: peak.
        warmup_steps: steps to the peak.

    Returns:
        Variables for `model.apply`.

    Raises:
        ValueError: if images or labels do not fit the model, or there is less than one batch.
        FloatingPointError: if the loss diverges.

    Example:
        >>> model = models.VisionTransformer(8, 4, 1, width=8, depth=1, num_heads=2, mlp_dim=16,
        ...                           num_classes=2)
        >>> images, labels = np.zeros((4, 8, 8, 1), np.float32), np.array([0, 1, 2, 1])
        >>> pretrain_backbone(jax.random.key(0), model, images, labels, batch_size=4)
        Traceback (most recent call last):
        ValueError: labels must be 0 to num_classes - 1 = 1, got 0 to 2
    """
    labels = np.asarray(labels)
    check_images("images", images)
    validation.integer("num_epochs", num_epochs, minimum=1)
    validation.integer("batch_size", batch_size, minimum=1)
    if len(images) < batch_size or len(labels) != len(images):
        raise ValueError(
            f"images must be at least batch_size={batch_size}, one a label, got {len(images)} "
            f"images and {len(labels)} labels"
        )
    if labels.min() < 0 or labels.max() >= model.num_classes:
        raise ValueError(
            f"labels must be 0 to num_classes - 1 = {model.num_classes - 1}, got "
            f"{labels.min()} to {labels.max()}"
        )
    per_epoch = len(images) // batch_size
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, max(num_epochs * per_epoch, warmup_steps + 1)
    )

    def loss_fn(params: Any, batch: Any, key: Any) -> Array:
        seen: Any = model.apply({"params": params}, photometric_augment(key, batch["images"]))
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(
            seen["logits"], batch["labels"]
        )
        return jnp.mean(losses)

    init_key, run_key = jax.random.split(key)
    optimizer = optax.adamw(schedule, weight_decay=1e-4)
    variables = jax.jit(model.init)(init_key, jnp.zeros((1, *images.shape[1:])))
    params = nn.meta.unbox(variables["params"])
    state = training.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), run_key)
    step = training.make_train_step(loss_fn, optimizer)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(run_key)).tolist())
    for epoch in range(num_epochs):
        order = rng.permutation(len(images))
        for rows in np.split(order[: per_epoch * batch_size], per_epoch):
            state, metrics = step(state, {"images": images[rows], "labels": labels[rows]})
        if epoch % 10 == 9 or epoch == num_epochs - 1:
            loss = float(metrics.loss)
            if not np.isfinite(loss):
                raise FloatingPointError(f"pre-training diverged by pass {epoch + 1}: loss {loss}")
    return {"params": state.params}
