"""Networks without shortcuts: LeNet, VGG-11 and multilayer perceptrons of federated learning."""

from __future__ import annotations

import flax.linen as nn
import jax
from jaxtyping import Float

from jaxkit import validation
from jaxkit.models.resnet import linear, pixels, uniform_fan_in


class LeNet(nn.Module):
    """Two 5 x 5 convolutions of 64 channels and layers of 384 and 192.

    Attributes:
        num_classes: number of logits.

    Source: the official program of FedSpeed (arXiv 2302.10429).

    Example:
        >>> import jax.numpy as jnp
        >>> model = LeNet(10)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
        797962
    """

    num_classes: int

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"], *, train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Return the logits of normalized images."""
        x = pixels(images, 16)
        for layer in (1, 2):
            x = nn.Conv(
                64, (5, 5), padding="VALID", kernel_init=uniform_fan_in, name=f"conv{layer}"
            )(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        return _layers(_flat(x), (384, 192), self.num_classes)


class VGG11(nn.Module):
    """Eight 3 x 3 convolutions with five poolings, for 32 x 32 pixels.

    Attributes:
        num_classes: number of logits.
        hidden: widths of the layers before them; 9,225,610 parameters with none and 10 classes.

    Source: arXiv 1409.1556, configuration A, with the head that is usual for CIFAR.

    Example:
        >>> import jax.numpy as jnp
        >>> model = VGG11(10)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
        9225610
    """

    num_classes: int
    hidden: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"], *, train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Return the logits of normalized images."""
        x, layer = pixels(images, 32), 0
        for widths in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
            for width in widths:
                layer += 1
                x = nn.Conv(
                    width, (3, 3), padding=1, kernel_init=uniform_fan_in, name=f"conv{layer}"
                )(x)
                x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        return _layers(_flat(x), self.hidden, self.num_classes)


class MLP(nn.Module):
    """A multilayer perceptron with ReLU; logistic regression without hidden layers.

    Attributes:
        num_classes: number of logits.
        hidden: widths of the hidden layers; (200, 200) is the "2NN" of federated learning.

    Example:
        >>> import jax.numpy as jnp
        >>> variables = jax.eval_shape(MLP(10).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> sum(leaf.size for leaf in jax.tree.leaves(variables))
        199210
    """

    num_classes: int
    hidden: tuple[int, ...] = (200, 200)

    @nn.compact
    def __call__(
        self, images: Float[jax.Array, "B H W C"], *, train: bool = False
    ) -> Float[jax.Array, "B num_classes"]:
        """Return the logits of normalized images."""
        return _layers(_flat(pixels(images, 1)), self.hidden, self.num_classes)


def _flat(x: jax.Array) -> jax.Array:
    # Channels first, in the order that a PyTorch checkpoint's first linear layer expects.
    return x.transpose(0, 3, 1, 2).reshape(len(x), -1)


def _layers(x: jax.Array, hidden: tuple[int, ...], num_classes: int) -> jax.Array:
    validation.integer("num_classes", num_classes, minimum=1)
    for layer, width in enumerate(hidden, 1):
        validation.integer("hidden", width, minimum=1)
        x = nn.relu(linear(width, name=f"linear{layer}")(x))
    return linear(num_classes, name="head")(x)
