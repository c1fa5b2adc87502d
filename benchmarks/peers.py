"""The same VAE written by hand and with other packages, as contenders for `train.py`.

A contender is a generator: it builds what it needs and gives, each time it is asked, the seconds
of one more epoch over the same rows, in a new order. The objective is minus the mean over rows of
one draw of log p(x|z) + log p(z) - log q(z|x), with Adam and a learning rate of 1e-3; pythae knows
only KL(q || p) in closed form.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

RATE = 1e-3


@dataclass(frozen=True)
class Work:
    """What is trained: rows of float32 in a file, whole batches of them, and the network."""

    path: str
    batch: int
    hidden: tuple[int, ...] = (400,)
    latent: int = 20
    case: str = "mlp"

    @property
    def x(self) -> Tensor:
        return torch.as_tensor(np.load(self.path, mmap_mode="c"))

    def sizes(self, entries: int) -> tuple[list[int], list[int]]:
        """Of the layers of encoder and decoder."""
        encoder = [entries, *self.hidden, 2 * self.latent]
        return encoder, [self.latent, *reversed(self.hidden), entries]


class Turn(NamedTuple):
    """Seconds of an epoch, and of what came before it: recording and compiling."""

    epoch: float
    setup: float = 0.0
    remark: str = ""


Turns = Iterator[Turn]


def clocked(epoch: Callable[[], Any]) -> Turns:
    """One epoch at a time; what the very first takes longer is its set-up."""

    def seconds() -> float:
        began = time.perf_counter()
        epoch()
        return time.perf_counter() - began

    first, second = seconds(), seconds()
    yield Turn(second, first - second)
    while True:
        yield Turn(seconds())


def layers(sizes: list[int]) -> nn.Sequential:
    made = [module for i, o in pairwise(sizes) for module in (nn.Linear(i, o), nn.Softplus())]
    return nn.Sequential(*made[:-1])


class TorchVAE(nn.Module):
    """What one would write for a single model, with nothing in it that is not needed."""

    def __init__(self, work: Work, entries: int) -> None:
        super().__init__()
        self.encoder, self.decoder = map(layers, work.sizes(entries))

    def loss(self, x: Tensor) -> Tensor:
        mean, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn_like(mean)
        z = mean + log_scale.exp() * noise
        kl = (0.5 * (z.square() - noise.square()) - log_scale).sum()
        error = functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        return (kl + error) / len(x)


def by_hand(work: Work, fused: bool = False, compiled: bool = False) -> Turns:
    """Slices of a tensor, with Adam as torch comes or fused."""
    x = work.x
    vae = TorchVAE(work, x.shape[1])
    adam = torch.optim.Adam(vae.parameters(), lr=RATE, fused=fused or None)
    loss = torch.compile(vae.loss) if compiled else vae.loss

    def epoch() -> float:
        total = torch.zeros(())
        for index in torch.randperm(len(x)).split(work.batch):
            value = loss(x.index_select(0, index))
            adam.zero_grad()
            value.backward()
            adam.step()
            total += value.detach()
        return total.item()

    return clocked(epoch)


def pyro_tutorial(work: Work) -> Turns:
    """The loop of Pyro's VAE example, with its DataLoader, optimiser and distributions."""
    import pyro
    import pyro.distributions as dist
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam
    from torch.utils.data import DataLoader, TensorDataset

    class PyroVAE(TorchVAE):
        def model(self, x: Tensor) -> None:
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x)):
                zeros = torch.zeros(len(x), work.latent)
                z = pyro.sample("z", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
                image = torch.sigmoid(self.decoder(z))
                likelihood = dist.Bernoulli(image, validate_args=False).to_event(1)
                pyro.sample("x", likelihood, obs=x)

        def guide(self, x: Tensor) -> None:
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", len(x)):
                mean, log_scale = self.encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(mean, log_scale.exp()).to_event(1))

    vae = PyroVAE(work, work.x.shape[1])
    svi = SVI(vae.model, vae.guide, Adam({"lr": RATE}), Trace_ELBO())
    loader = DataLoader(TensorDataset(work.x), batch_size=work.batch, shuffle=True)
    return clocked(lambda: sum(svi.step(x) for (x,) in loader))


def pythae(work: Work) -> Turns:
    """An epoch of pythae's `BaseTrainer`, without its progress bar and messages."""
    import logging
    from tempfile import mkdtemp

    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    x = work.x
    encoder_sizes, decoder_sizes = work.sizes(x.shape[1])

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers(encoder_sizes)

        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_variance = self.layers(x).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers(decoder_sizes)

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.layers(z)))

    logging.disable(logging.INFO)
    config = VAEConfig(input_dim=(x.shape[1],), latent_dim=work.latent, reconstruction_loss="bce")
    trainer = BaseTrainer(
        VAE(config, Encoder(), Decoder()),
        BaseDataset(x, torch.zeros(len(x))),
        training_config=BaseTrainerConfig(
            output_dir=mkdtemp(), per_device_train_batch_size=work.batch, learning_rate=RATE
        ),
    )
    trainer.prepare_training()
    trainer.callback_handler.callbacks.clear()
    return clocked(lambda: trainer.train_step(epoch=1))


def jax_layers(jax: Any, sizes: list[int]) -> list[tuple[Any, Any]]:
    keys = jax.random.split(jax.random.key(0), len(sizes))
    return [
        (jax.random.uniform(key, (i, o), minval=-1, maxval=1) / i**0.5, jax.numpy.zeros(o))
        for key, (i, o) in zip(keys, pairwise(sizes), strict=False)
    ]


def jax_network(jax: Any, weights: list[tuple[Any, Any]], a: Any) -> Any:
    *hidden, (w, b) = weights
    for weight, bias in hidden:
        a = jax.nn.softplus(a @ weight + bias)
    return a @ w + b


def by_hand_in_jax(work: Work) -> Turns:
    """A jitted step that picks its own rows; the epoch is a Python loop."""
    import jax
    import optax
    from jax import numpy as jnp

    x = jnp.asarray(work.x.numpy())
    adam, batch = optax.adam(RATE), work.batch
    weights: Any = [jax_layers(jax, sizes) for sizes in work.sizes(x.shape[1])]
    state, key = adam.init(weights), jax.random.key(1)

    def loss(weights: Any, rows: Any, key: Any) -> Any:
        mean, log_scale = jnp.split(jax_network(jax, weights[0], rows), 2, -1)
        noise = jax.random.normal(key, mean.shape)
        z = mean + jnp.exp(log_scale) * noise
        kl = (0.5 * (z**2 - noise**2) - log_scale).sum()
        logits = jax_network(jax, weights[1], z)
        return (kl + (jax.nn.softplus(logits) - rows * logits).sum()) / batch

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(weights: Any, state: Any, x: Any, order: Any, i: Any, key: Any) -> Any:
        rows = x[jax.lax.dynamic_slice(order, (i * batch,), (batch,))]
        value, gradients = jax.value_and_grad(loss)(weights, rows, jax.random.fold_in(key, i))
        updates, state = adam.update(gradients, state)
        return optax.apply_updates(weights, updates), state, value

    def epoch() -> float:
        nonlocal weights, state, key
        key, shuffling = jax.random.split(key)
        order = jax.random.permutation(shuffling, len(x))
        total = 0.0
        for i in range(len(x) // batch):
            weights, state, value = step(weights, state, x, order, i, key)
            total = total + value
        return float(total)

    return clocked(epoch)


def numpyro(work: Work) -> Turns:
    """NumPyro's SVI, the whole epoch in one jitted scan."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax import numpy as jnp
    from numpyro.infer import SVI, Trace_ELBO

    x, batch = jnp.asarray(work.x.numpy()), work.batch
    starts = dict(
        zip(
            ("encoder", "decoder"),
            (jax_layers(jax, sizes) for sizes in work.sizes(x.shape[1])),
            strict=True,
        )
    )

    def network(name: str, a: Any) -> Any:
        return jax_network(jax, numpyro.param(name, starts[name]), a)

    def model(rows: Any) -> None:
        with numpyro.plate("data", batch):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(work.latent), 1).to_event(1))
            logits = network("decoder", z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=rows)

    def guide(rows: Any) -> None:
        mean, log_scale = jnp.split(network("encoder", rows), 2, -1)
        with numpyro.plate("data", batch):
            numpyro.sample("z", dist.Normal(mean, jnp.exp(log_scale)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(RATE), Trace_ELBO())
    state, key = svi.init(jax.random.key(0), x[:batch]), jax.random.key(1)

    @partial(jax.jit, donate_argnums=0)
    def sweep(state: Any, x: Any, order: Any) -> Any:
        state, losses = jax.lax.scan(lambda state, i: svi.update(state, x[i]), state, order)
        return state, losses.sum()

    def epoch() -> float:
        nonlocal state, key
        key, shuffling = jax.random.split(key)
        order = jax.random.permutation(shuffling, len(x))
        state, total = sweep(state, x, order.reshape(-1, batch))
        return float(total)

    return clocked(epoch)


def matrix_products(work: Work) -> Turns:
    """No training: only the products of a step, forward and backward, by the faster library."""
    products: list[Callable[[], Tensor]] = []
    for sizes in work.sizes(work.x.shape[1]):
        for i, o in pairwise(sizes):
            a, w, g = torch.randn(work.batch, i), torch.randn(o, i), torch.randn(work.batch, o)
            products += [faster(a, w.mT), faster(g.mT, a), faster(g, w)]
    del products[2]  # nobody wants the gradient of the rows

    def epoch() -> None:
        for _ in range(len(work.x) // work.batch):
            for product in products:
                product()

    return clocked(epoch)


def faster(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """The product A B, by MKL or by oneDNN."""
    choices: list[Callable[[], Tensor]] = [lambda: torch.mm(a, b)]
    if torch.backends.mkldnn.is_available():
        choices.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b.mT, None, "none", [], ""))
    return min(choices, key=shortest)


def shortest(call: Callable[[], Any], budget: float = 0.1) -> float:
    """Seconds of the shortest of the calls that fit into the budget."""
    call()
    found, end = [], time.perf_counter() + budget
    while len(found) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)


CONTENDERS: dict[str, Callable[[Work], Turns]] = {
    "torch eager": by_hand,
    "torch fused": partial(by_hand, fused=True),
    "torch compiled": partial(by_hand, fused=True, compiled=True),
    "pyro tutorial": pyro_tutorial,
    "pythae": pythae,
    "jax": by_hand_in_jax,
    "numpyro": numpyro,
    "matrix products": matrix_products,
}
