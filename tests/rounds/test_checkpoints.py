"""A checkpoint is there whole or not at all, and what is read is what was written."""

import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpw_flwr.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from fedpw_flwr.rounds.checkpoints import differences
from fedpw_flwr.rounds.run_state import put_back, run_checkpoint

MODEL = {
    "z.weight": torch.linspace(-1, 1, 12).reshape(3, 4),
    "a.counter": torch.tensor(7),
    "half": torch.ones(5, dtype=torch.float16),
    "double": torch.full((2,), 1 / 3, dtype=torch.float64),
    "empty": torch.zeros(0),
}
STATE = {
    "number": 0.1 + 0.2,
    "whole": 3,
    "nothing": None,
    "list": [1, [2.5, "ℓ"]],
    "odd": [math.inf, -math.inf, math.nan],
    "raw": b"\x00\xff",
    # Such as a metric of a user's that has the name of a mark in the file.
    "marks": [{"not-finite": 3}, {"bytes-hex": "no"}, {"mapping": {"not-finite": math.inf}}],
}


def checkpoint(server_round: int) -> Checkpoint:
    return Checkpoint(
        round=server_round,
        model=MODEL,
        state=STATE,
        tensors={"mask": torch.tensor([True, False])},
        fingerprint={"beta": 0.3},
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "new" / "folder")
    assert store.newest() is None
    folder = store.save(checkpoint(12))
    assert folder == tmp_path / "new" / "folder" / "round-000012"
    found = store.newest()
    assert found is not None
    assert found.round == 12
    assert list(found.model) == list(MODEL)
    for name, tensor in MODEL.items():
        assert found.model[name].dtype == tensor.dtype
        assert torch.equal(found.model[name], tensor)
    assert torch.equal(found.tensors["mask"], torch.tensor([True, False]))
    assert found.fingerprint == {"beta": 0.3}
    assert repr(found.state) == repr(STATE)
    # Plain enough for other programs.
    json.loads((folder / "state.json").read_text(), parse_constant=pytest.fail)


def test_tensors_that_share_memory_come_back_each_whole(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    model = {"rows": whole[1:3], "whole": whole, "turned": whole.t(), "entry": whole[2, 3]}
    store = CheckpointStore(tmp_path)
    store.save(Checkpoint(round=4, model=model, tensors={"column": whole[:, 0], "all": whole}))
    found = store.load(4)
    assert list(found.model) == list(model)
    for name, tensor in model.items():
        assert torch.equal(found.model[name], tensor), name
    assert torch.equal(found.tensors["column"], whole[:, 0])


def test_the_newest_are_kept_and_the_rest_goes(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for server_round in (1, 2, 3):
        store.save(checkpoint(server_round))
    assert store.rounds() == [3, 2]
    # A run that went back to round 1 overtakes what was there.
    store.save(checkpoint(2))
    assert store.rounds() == [2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000002"]


def test_a_checkpoint_is_due_every_so_many_rounds_and_after_the_last() -> None:
    store = CheckpointStore("unused", every=3)
    assert [number for number in range(1, 9) if store.is_due(number, 8)] == [3, 6, 8]


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
@settings(max_examples=25, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), torn=st.booleans())
def test_any_damage_is_noticed_and_the_one_before_is_taken(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: float, torn: bool
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    store = CheckpointStore(folder)
    store.save(checkpoint(1))
    file = store.save(checkpoint(2)) / name
    content = bytearray(file.read_bytes())
    at = int(place * len(content))
    damaged = content[:at] if torn else content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    if name == "state.json":
        # Spaces and line ends between the entries carry nothing.
        try:
            same = json.loads(damaged) == json.loads(content)
        except ValueError:
            same = False
        if same:
            return
    file.write_bytes(damaged)
    with pytest.raises(CheckpointError, match="not intact"):
        store.load(2)
    found = store.newest()
    assert found is not None
    assert found.round == 1


def test_a_missing_file_is_noticed_and_where_all_are_damaged_it_is_said(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for server_round in (1, 2):
        (store.save(checkpoint(server_round)) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact.*round-000002"):
        store.newest()


def test_what_a_killed_process_left_half_written_is_ignored_and_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    partial = tmp_path / ".round-000002.0123abcd.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    assert store.rounds() == [1]
    store.save(checkpoint(2))
    assert not partial.exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.raises(CheckpointError, match=r"round 1 cannot be written to .*file"):
        CheckpointStore(file).save(checkpoint(1))


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("not allowed")

    for listing in ("listdir", "scandir"):
        monkeypatch.setattr(os, listing, refused)
    with pytest.raises(PermissionError):
        CheckpointStore(tmp_path).rounds()


def test_a_state_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    with pytest.raises(CheckpointError, match="round 2 cannot be written"):
        store.save(Checkpoint(2, MODEL, {"function": print}))
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001"]


@pytest.mark.parametrize("name", ["every", "keep"])
@pytest.mark.parametrize("number", [0, -1, 1.5])
def test_numbers_have_to_be_positive(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive integer"):
        CheckpointStore("unused", **{name: number})


def test_differences_are_named() -> None:
    saved = {"beta": 0.3, "model": {"w": "float32 [3]", "b": "float32 [1]"}, "gone": 1}
    now = {"beta": 0.4, "model": {"w": "float32 [4]", "b": "float32 [1]"}, "new": None}
    assert differences(saved, now) == [
        "beta: 0.3 in the checkpoint, 0.4 now",
        "gone: 1 in the checkpoint, not there now",
        "model.w: 'float32 [3]' in the checkpoint, 'float32 [4]' now",
        "new: not in the checkpoint, None now",
    ]
    assert differences(saved, saved) == []


def test_random_state_comes_back_through_a_checkpoint(tmp_path: Path) -> None:
    def numbers() -> list[float]:
        normal = [random.gauss(0, 1), random.random(), float(np.random.standard_normal())]
        return [*normal, float(np.random.random()), *torch.randn(3).tolist()]

    model = ArrayRecord({"w": Array(np.zeros(1, np.float32))})
    before = run_checkpoint(0, object(), model, {}, {})
    try:
        numbers()
        CheckpointStore(tmp_path).save(run_checkpoint(1, object(), model, {}, {}))
        expected = numbers()
        found = CheckpointStore(tmp_path).newest()
        assert found is not None
        put_back(found, object(), lambda arrays, state: None)
        assert numbers() == expected
    finally:
        put_back(before, object(), lambda arrays, state: None)
