"""Local training: what a client does with the global model in one round.

Plain SGD on the client's own examples. The loss it returns is what FedPW weighs clients by: the
mean over *all* local batches of the round, not the last epoch's, so that it says how hard they were
for the model that arrived.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.sgd import sgd

from fedpw_flwr.lab.data.examples import Examples
from fedpw_flwr.lab.training.batches import Normalisation, training_batches
from fedpw_flwr.lab.training.memory import keep_freed_memory
from fedpw_flwr.lab.training.settings import ClientSettings

_FUSED_SGD = ("cpu", "cuda")


def client_generator(seed: int, round_number: int, client_id: int) -> torch.Generator:
    """Return the source of randomness of one client in one round, from three numbers of at least 0.

    It depends on nothing else, so a round is the same whatever trained before it in this process
    and in whatever order.
    """
    state = np.random.SeedSequence([seed, round_number, client_id]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def train(
    model: nn.Module,
    examples: Examples,
    settings: ClientSettings,
    normalisation: Normalisation,
    *,
    generator: torch.Generator,
    proximal_mu: float = 0.0,
) -> float:
    """Train `model` in place on at least one example, and leave it in training mode.

    It is trained, and left, on the device of `normalisation`. `generator`, on the CPU, decides
    orders and crops. On a CPU the process keeps freed memory from then on, see
    :func:`fedpw_flwr.lab.training.memory.keep_freed_memory`.

    `proximal_mu` is μ of FedProx (Li et al., MLSys 2020), whose clients minimise
    ℓ(w) + μ/2 ‖w − w_start‖² over the parameters w, which arrive as w_start. 0 is plain SGD, bit by
    bit.

    Returns the mean cross-entropy in nats, without FedProx's term, over all batches of all epochs.
    It is not finite if training diverged.
    """
    if len(examples) == 0:
        raise ValueError("cannot train on 0 examples: give this client some, or leave it out")
    if not 0 <= proximal_mu < math.inf:
        raise ValueError(f"proximal_mu must be at least 0 and finite, got {proximal_mu}")
    device = normalisation.device
    if device.type == "cpu":
        keep_freed_memory()
    model.to(device).train()
    network = _compiled(model) if settings.compile else model
    start = [weight.detach().clone() for weight in model.parameters()] if proximal_mu > 0 else []
    batches = training_batches(
        examples,
        normalisation,
        batch_size=settings.batch_size,
        crop_padding=settings.crop_padding,
        epochs=settings.epochs,
        generator=generator,
        horizontal_flip=settings.horizontal_flip,
    )
    mixed = settings.precision == "bfloat16"
    # Summed where the losses are: reading each one would make the host wait for the device.
    total = torch.zeros((), device=device)
    steps = 0
    momenta: dict[nn.Parameter, Tensor | None] = {}
    for features, labels in batches:
        model.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
            loss = cross_entropy(network(features).float(), labels)
        loss.backward()
        if proximal_mu > 0:
            _add_proximal_gradient(list(model.parameters()), start, proximal_mu)
        _step(model, momenta, settings, device)
        total += loss.detach()
        steps += 1
    return float(total) / steps


@torch.no_grad()
def _step(
    model: nn.Module,
    momenta: dict[nn.Parameter, Tensor | None],
    settings: ClientSettings,
    device: torch.device,
) -> None:
    """Take a step of SGD, and keep each weight's momentum for the next.

    `torch.optim.SGD` would import PyTorch's compiler: 75 MiB in each worker.
    """
    weights = [weight for weight in model.parameters() if weight.grad is not None]
    moving = [momenta.get(weight) for weight in weights]
    sgd(
        list(weights),
        [weight.grad for weight in weights if weight.grad is not None],
        moving,
        # One kernel for all weights, where there is one; the others loop over them.
        fused=True if device.type in _FUSED_SGD else None,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )
    momenta.update(zip(weights, moving, strict=True))


@torch.no_grad()
def _add_proximal_gradient(
    weights: Sequence[nn.Parameter], start: Sequence[Tensor], mu: float
) -> None:
    """Add μ (w − w_start), the gradient of FedProx's term, to the gradients of the loss.

    As a gradient, because the loss that a client reports stays without the term, and no graph is
    built for it. A weight that gets no gradient stands where it started.
    """
    moving = [(w, s, w.grad) for w, s in zip(weights, start, strict=True) if w.grad is not None]
    distances = torch._foreach_sub([w for w, _, _ in moving], [s for _, s, _ in moving])
    torch._foreach_add_([gradient for _, _, gradient in moving], distances, alpha=mu)


@lru_cache(maxsize=8)
def _compiled(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Compile a worker's model once: it takes many seconds, and all its clients share it."""
    compiled: Callable[[Tensor], Tensor] = torch.compile(model)
    return compiled
