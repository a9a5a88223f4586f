"""Golden rounds: what must come out of the method, by the reference and by the authors' code.

The rounds of `golden_run` are drawn from a seed and computed by `support.reference`. Each starts
from the golden model of the round before, so that an error cannot hide behind an earlier one. Those
of `authors_run` were made by the authors' code and lie beside the repository, where they are there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from support.reference import Arrays, Asked, Reply, Server, Settings, Step

AUTHORS = Path(__file__).resolve().parents[3] / "shared" / "golden"
AUTHORS_RUNS = ("cnn_bn_5clients", "mlp_6clients")
RUNS = ("paper", "churn", "list")


@dataclass(frozen=True)
class GoldenRound:
    """w, what comes back, and what the round must give; `asked` where the clients adjust."""

    start: dict[str, NDArray[Any]]
    replies: dict[int, Reply]
    expected: Step
    asked: Asked | None = None


@dataclass(frozen=True)
class GoldenRun:
    """Rounds in a row, with the settings of the method."""

    settings: Settings
    rounds: list[GoldenRound]

    def arguments(self) -> dict[str, Any]:
        """The settings by name, as the package calls them, too."""
        return {each.name: getattr(self.settings, each.name) for each in fields(Settings)}


# --- Rounds of the authors ----------------------------------------------------------------------


def authors_run(name: str) -> tuple[GoldenRun, list[str]]:
    """A file of ../shared/golden, and the names of its trainable tensors.

    Counters are not comparable: the authors' code truncates them. They are rounded here.
    """
    with np.load(AUTHORS / f"{name}.npz", allow_pickle=False) as archive:
        data = dict(archive)
    names = [str(name) for name in data["names"]]
    settings = Settings(
        avg_drop_rate=float(data["avg_drop_rate"]),
        beta=float(data["beta"]),
        clip_weights=False,
        max_weight=None,
        max_loss_ratio=None,
    )
    start, rounds = {name: data[f"init/{name}"] for name in names}, []
    for t, losses in enumerate(data["losses"].astype(np.float64)):
        clients = list(range(len(losses)))
        replies = {
            k: Reply({name: data[f"round{t}/client{k}/{name}"] for name in names}, losses[k])
            for k in clients
        }
        weights = data["weights"][t]
        after = {name: data[f"round{t}/global/{name}"] for name in names}
        for name in names:
            if after[name].dtype.kind == "i":
                mean = weights @ [replies[k].model[name] for k in clients]
                after[name] = np.rint(mean).astype(after[name].dtype)
        terms = weights, data["direction_term"][t], data["loss_term"][t]
        # The files give the first round's rates too, but nothing is dropped in it.
        rates = data["drop_rates"][t] if t else None
        step = Step(clients, after, *terms, losses, losses / losses.mean(), rates, {})
        rounds.append(GoldenRound(start, replies, step))
        start = after
    trainable = [name for name, trained in zip(names, data["is_param"], strict=True) if trained]
    return GoldenRun(settings, rounds), trainable


# --- Rounds of the reference --------------------------------------------------------------------

SHAPES: dict[str, tuple[int, ...]] = {
    "conv.weight": (4, 2, 3, 3),
    "bn.weight": (4,),
    "bn.bias": (4,),
    "bn.running_mean": (4,),
    "bn.running_var": (4,),
    "bn.num_batches_tracked": (),
    "scale": (40,),
    "opposed": (30,),
    "alike": (50,),
    # Long enough for the package to look for its smallest entries in a bracket.
    "fc.weight": (100, 90),
    "fc.bias": (100,),
}
"""On `scale` nobody has a negative entry. On `opposed` large updates cancel: there m/a ≥ 1.
On `alike` all updates are the same: scores differ by rounding alone, which 16 bits are to hide."""


@dataclass(frozen=True)
class Plan:
    """What happens in a round; some clients train against the others, not at all, or far ahead."""

    clients: tuple[int, ...]
    losses: dict[int, float]
    """ℓ_k where they are not drawn."""
    length: float = 1.0
    """How long updates are: d̄ grows with its square."""
    against: tuple[int, ...] = ()
    unmoved: tuple[int, ...] = ()
    ahead: tuple[int, ...] = ()


ALL = (0, 1, 2, 3, 4)

FULL_PARTICIPATION = [
    Plan(ALL, {}, length=1.5, against=(3,)),
    Plan(ALL, {}),
    # Client 2's rate is capped at 1; β_dir is clamped.
    Plan(ALL, {0: 1.2, 1: 1.3, 2: 0.01, 3: 1.1, 4: 1.4}, length=3.0),
    # β_loss is clamped.
    Plan(ALL, dict.fromkeys(ALL, 6.0) | {1: 7.0}, unmoved=(0,)),
    Plan(ALL, {}, unmoved=ALL),
    Plan(ALL, {}, length=0.5),
    Plan(ALL, dict.fromkeys(ALL, 0.0)),
]
CHURN = [
    Plan((0, 1, 2, 3), {}, length=2.0, against=(1,)),
    Plan((1, 2, 3), {}),
    # Client 2's rate is capped at 1; β_dir is clamped; a newcomer trains against the others.
    Plan((0, 1, 2, 3, 7), {0: 1.2, 1: 1.3, 2: 0.01, 3: 1.1, 7: 1.4}, length=4.0, against=(7,)),
    # A newcomer's loss is brought within its bound; β_loss is clamped.
    Plan((0, 2, 5, 7), {0: 8.0, 2: 7.0, 5: 900.0, 7: 7.5}, unmoved=(2,)),
    Plan((6,), {}),
    Plan((0, 3, 6), {}, unmoved=(0, 3, 6)),
    Plan((1, 2, 3, 5, 6, 7), {}, length=0.5, against=(1,)),
    Plan((0, 1, 2, 4), {0: 0.0}),
]
AHEAD = [Plan((*ALL, 5), {}, ahead=(4,)), Plan((*ALL, 5), {})]
PAPER = Settings(clip_weights=False, max_weight=None, max_loss_ratio=None)


@cache
def golden_run(name: str, dtype: DTypeLike = "float32") -> GoldenRun:
    """Rounds of the reference; `dtype` is that of the floating tensors.

    "paper": the paper's formulas, everybody there. "churn": the defaults, clients come and go.
    "list": the same, arrays without names. "clients": the same, adjusted by the clients.
    "equal weights": likewise, weighted by number of examples. "bounded": λ beyond `max_weight`.
    """
    settings = {"paper": PAPER, "equal weights": Settings(adapt_weights=False)}.get(
        name, Settings()
    )
    plans = {"paper": FULL_PARTICIPATION, "bounded": AHEAD}.get(name, CHURN)
    server, rng = Server(settings), np.random.default_rng(len(name))
    start, rounds = _first_model(rng, dtype), []
    if name == "list":
        start = dict(zip(map(str, range(len(start))), start.values(), strict=True))
    for number, plan in enumerate(plans):
        asked = server.ask(plan.clients) if name in ("clients", "equal weights") else None
        while True:
            replies = _replies(rng, start, plan, number)
            if _is_settled(rng, server, start, replies, asked):
                break
        step = server.step(start, replies, asked)
        rounds.append(GoldenRound(start, replies, step, asked))
        start = {key: array.astype(start[key].dtype) for key, array in step.model.items()}
    return GoldenRun(settings, rounds)


def _first_model(rng: np.random.Generator, dtype: DTypeLike) -> dict[str, NDArray[Any]]:
    model: dict[str, NDArray[Any]] = {
        name: (0.3 * rng.standard_normal(shape)).astype(dtype) for name, shape in SHAPES.items()
    }
    for name in ("bn.running_var", "scale"):
        model[name] = rng.uniform(0.8, 1.2, SHAPES[name]).astype(dtype)
    model["bn.num_batches_tracked"] = np.array(40)
    return model


def _replies(rng: np.random.Generator, start: Arrays, plan: Plan, number: int) -> dict[int, Reply]:
    """Updates with a common part, and what is special about some clients and tensors."""
    common = [rng.standard_normal(shape) for shape in SHAPES.values()]
    replies = {}
    for k in plan.clients:
        model: dict[str, NDArray[Any]] = {}
        for (key, w), name, agreed in zip(start.items(), SHAPES, common, strict=True):
            own = rng.standard_normal(w.shape)
            sign, reach = (-1.0 if k in plan.against else 1.0), (20.0 if k in plan.ahead else 1.0)
            update = 0.02 * plan.length * reach * (sign * agreed + 0.8 * own)
            if name == "opposed":
                update = 0.02 * (-1) ** k * rng.uniform(1.0, 1.5, w.shape)
            elif name == "alike":
                update = 0.02 * agreed
            w_k = w - update
            if name == "bn.running_var":
                w_k = w * rng.uniform(0.5, 1.5, w.shape)
            elif name == "scale":
                # Up and nearly down to 0: amplified, the second would go below it.
                low, high = ((0.8, 1.2), (0.01, 0.05))[number % 2]
                w_k = rng.uniform(low, high, w.shape)
            elif name == "bn.num_batches_tracked":
                w_k = w + 3 + 2 * k
            model[key] = np.asarray(w if k in plan.unmoved else w_k).astype(w.dtype)
        loss = plan.losses.get(k, float(rng.uniform(0.5, 2.0)))
        replies[k] = Reply(model, loss, examples=10.0 + 7 * k)
    return replies


NOISE = 3e-6


def _is_settled(
    rng: np.random.Generator,
    server: Server,
    start: Arrays,
    replies: Mapping[int, Reply],
    asked: Asked | None,
) -> bool:
    """Whether rounding in single precision can change no choice of this round.

    Which entries are masked, which belong to C, whether to amplify, what a counter is rounded to:
    each is a jump. So updates are redrawn until noise larger than float32's leaves the step where
    it is; then engines may be compared without excuses. Ties survive the noise: 16 bits hide it.
    """
    exact = copy.deepcopy(server).step(start, replies, asked)
    for _ in range(3):
        noisy = {
            k: replace(reply, model=_noisy(rng, start, reply.model)) for k, reply in replies.items()
        }
        near = copy.deepcopy(server).step(_as_float64(start), noisy, asked)
        off = [np.abs(near.model[name] - exact.model[name]).max() for name in start]
        if max(off) > 10 * NOISE or any(
            abs(f - exact.factors[name]) > 1e-4 for name, f in near.factors.items()
        ):
            return False
    return True


def _as_float64(model: Arrays) -> dict[str, NDArray[Any]]:
    return {
        name: array.astype(np.float64) if array.dtype.kind == "f" else array
        for name, array in model.items()
    }


def _noisy(rng: np.random.Generator, start: Arrays, trained: Arrays) -> dict[str, NDArray[Any]]:
    noisy = _as_float64(trained)
    for name, w in start.items():
        if w.dtype.kind == "f":
            update = w.astype(np.float64) - noisy[name]
            noisy[name] = w - update * (1 + NOISE * rng.standard_normal(w.shape))
    return noisy
