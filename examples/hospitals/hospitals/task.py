"""hospitals: A Flower app."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

NUMBERS = ["age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak", "ca"]
CATEGORIES = {"cp": [1, 2, 3, 4], "restecg": [0, 1, 2], "slope": [1, 2, 3], "thal": [3, 6, 7]}
COLUMNS = [
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"),
    *("slope", "ca", "thal", "num"),
]
NEVER_ZERO = ["trestbps", "chol", "thal"]
NUM_FEATURES = len(NUMBERS) + sum(map(len, CATEGORIES.values())) + len(COLUMNS) - 1

Array = NDArray[np.float64]
Model = list[Array]  # weights (NUM_FEATURES,) and bias (1,) of a logistic regression


def load_data(file: Path, seed: int) -> tuple[Array, Array, Array, Array]:
    """Read one hospital's patients: features and labels to train on, and to test on.

    Everything is prepared from the hospital's own training patients: nothing else leaves it.
    """
    table = pd.read_csv(file, header=None, names=COLUMNS, na_values="?", dtype=float)
    is_sick = table.pop("num") > 0
    table[NEVER_ZERO] = table[NEVER_ZERO].replace(0, np.nan)
    train, test, y_train, y_test = train_test_split(
        table, is_sick, test_size=1 / 3, stratify=is_sick, random_state=seed
    )
    nothing = SimpleImputer(strategy="constant", fill_value=0, keep_empty_features=True)
    prepare = ColumnTransformer(
        [
            ("numbers", make_pipeline(StandardScaler(), nothing), NUMBERS),
            (
                "categories",
                OneHotEncoder(categories=list(CATEGORIES.values()), handle_unknown="ignore"),
                list(CATEGORIES),
            ),
            ("missing", MissingIndicator(features="all"), list(table.columns)),
        ],
        sparse_threshold=0,
    )
    # An attribute that nobody in this hospital has makes NumPy warn of the mean of nothing.
    with np.errstate(all="ignore"):
        return (
            prepare.fit_transform(train),
            y_train.to_numpy(float),
            prepare.transform(test),
            y_test.to_numpy(float),
        )


def new_model() -> Model:
    """Return the logistic regression that knows nothing."""
    return [np.zeros(NUM_FEATURES), np.zeros(1)]


def probabilities(model: Model, x: Array) -> Array:
    """Return each patient's probability of disease."""
    weights, bias = model
    return 1 / (1 + np.exp(-(x @ weights + bias)))


def loss(model: Model, x: Array, y: Array) -> float:
    """Return the mean cross-entropy."""
    p = probabilities(model, x).clip(1e-12, 1 - 1e-12)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p)))


def train(
    model: Model, x: Array, y: Array, epochs: int, batch_size: int, lr: float, seed: int
) -> float:
    """Train the model in place; return the mean loss over all batches."""
    random = np.random.default_rng(seed)
    losses = []
    for _ in range(epochs):
        order = random.permutation(len(y))
        for batch in np.array_split(order, max(1, len(y) // batch_size)):
            losses.append(loss(model, x[batch], y[batch]))
            error = probabilities(model, x[batch]) - y[batch]
            model[0] -= lr * x[batch].T @ error / len(batch)
            model[1] -= lr * error.mean()
    return float(np.mean(losses))
