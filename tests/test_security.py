"""What SECURITY.md claims: nothing is unpickled, and no size is believed before it was checked."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import pickle
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.clientapp.typing import Mod
from support.grid import ClientsGrid

import fedpw_flwr
from fedpw_flwr import FedPW, FedPWMod
from fedpw_flwr.algorithm import FedPWSettings
from fedpw_flwr.algorithm.bounds import bounded_weights
from fedpw_flwr.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from fedpw_flwr.lab.data.archives import archives
from fedpw_flwr.lab.data.cache import load_images
from fedpw_flwr.rounds.faults import Project
from fedpw_flwr.rounds.identities import Identities
from fedpw_flwr.rounds.replies import Answer, AskedRound
from fedpw_flwr.rounds.screening import screen_train_replies
from fedpw_flwr.wire.adjustment import (
    CONSENSUS_KEY,
    REPORT_KEY,
    REQUEST_KEY,
    AdjustmentReport,
    AdjustmentRequest,
    consensus_members,
)
from fedpw_flwr.wire.arrays import array_of_npy
from fedpw_flwr.wire.packing import pack_update

REPOSITORY = Path(fedpw_flwr.__file__).resolve().parents[1]
SOURCES = sorted(
    path for folder in ("fedpw_flwr", "examples") for path in (REPOSITORY / folder).rglob("*.py")
)

UNPICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
HARMLESS = {"joblib.cpu_count"}
RUNS_WHAT_IT_READS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pty.spawn"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
    *("torch.save", "torch.hub.load", "numpy.fromfile", "code.interact"),
}
"""Functions that run code, or write what can only be read by running code."""

NEEDED = {
    "numpy.load": ("allow_pickle", False),
    "numpy.save": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
    "numpy.lib.npyio.NpzFile": ("allow_pickle", False),
    "torch.load": ("weights_only", True),
}
"""Arguments that have to be said, whatever their default is in some version."""

KILOBYTE, MEGABYTE = 1_000, 1_000_000
HUGE = 10**12


# ── Nothing that is read can run ──────────────────────────────────────────────────────────────────


def violations(source: str) -> list[str]:
    """Name everything in a module that would run what it reads."""
    tree = ast.parse(source)
    known = dict(_imported(tree))
    found = []
    for name in sorted(set(known.values())):
        if name.split(".")[0] in UNPICKLING and name not in HARMLESS:
            found.append(f"imports {name}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func, known)
        said = {word.arg: word.value for word in node.keywords}
        if name in RUNS_WHAT_IT_READS:
            found.append(f"line {node.lineno}: {name}")
        if name in NEEDED:
            argument, value = NEEDED[name]
            given = said.get(argument)
            if not (isinstance(given, ast.Constant) and given.value is value):
                found.append(f"line {node.lineno}: {name} without {argument}={value}")
        shell = said.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            found.append(f"line {node.lineno}: shell=")
    return found


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Give every imported name as the module calls it, and what it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                yield alias.asname or name, name
                yield f"import {alias.name}", alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.expr, known: Mapping[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, known)}.{node.attr}"
    return known.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def test_no_module_runs_what_it_reads() -> None:
    found = {path: violations(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert len(found) > 100
    assert {path: said for path, said in found.items() if said} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, dill as safe",
        "from joblib import load",
        "from joblib import *",
        "def f():\n    import cloudpickle",
        "import numpy as np\nnp.load(f)",
        "import numpy\nnumpy.load(f, allow_pickle=flag)",
        "from numpy import load as read\nread(f, allow_pickle=True)",
        "import torch\ntorch.load(f)",
        "from torch import load\nload(f, weights_only=False)",
        "import torch\ntorch.save(model, f)",
        "eval(text)",
        "import os\nos.system(text)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "from yaml import load\nload(text)",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert len(violations(source)) == 1


def test_the_search_leaves_alone_what_is_safe() -> None:
    safe = (
        "import json, numpy as np, torch\nfrom joblib import cpu_count\nmodel.eval()\n"
        "np.load(f, allow_pickle=False)\ntorch.load(f, weights_only=True)\njson.load(f)"
    )
    assert violations(safe) == []


def test_only_the_command_and_its_app_build_what_a_configuration_names() -> None:
    """A project that takes the strategy and the client wrapper has no such configuration."""
    named = {
        path.relative_to(REPOSITORY / "fedpw_flwr").parts[0]
        for path in (REPOSITORY / "fedpw_flwr").rglob("*.py")
        if any(
            name.split(".")[0] in ("hydra", "omegaconf")
            for _, name in _imported(ast.parse(path.read_text(encoding="utf-8")))
        )
    }
    assert named == {"lab"}


# ── What is claimed is checked before room is made for it ─────────────────────────────────────────


def peak(work: Callable[[], Any]) -> int:
    """Return the bytes that NumPy and Python asked for at most, touched or not.

    What torch and safetensors ask for is not seen.
    """
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def assert_refused_at_once(
    work: Callable[[], Any], message: str, error: type[Exception] = ValueError
) -> None:
    """It raises what it should before it makes room for what was claimed."""

    def refused() -> None:
        with pytest.raises(error, match=message):
            work()

    assert peak(refused) < MEGABYTE


def npy(shape: str, descr: str = "'<f4'", body: bytes = b"") -> bytes:
    """An npy payload whose header says anything."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


MODEL = {"layer.weight": torch.zeros(6, 4)}

CLAIMS = {
    "more entries than bytes": npy(f"({HUGE},)"),
    "an entry of a gigabyte": npy("(1,)", "'|V1000000000'"),
    "an entry of a terabyte": npy("(1,)", "'|V1000000000000'"),
    "an entry of many": npy("(1,)", "('<f4', (1000000, 1000000))"),
    "many entries of nothing": npy(f"({HUGE},)", "'|V0'"),
    "many empty rows": npy(f"(0, {HUGE})"),
    "more empty rows than a machine can count": npy(f"(0, {10**30})"),
    "more axes than NumPy has": npy(f"(0, {'1, ' * 70})"),
    "two negative lengths": npy("(-6, -4)", body=bytes(96)),
    "a length of thousands of digits": npy(f"({'9' * 4000},)"),
    "a long header": npy(f"(6, 4), {' ' * 60_000}"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_an_array_that_claims_to_be_huge_is_set_aside(claim: str) -> None:
    content = _reply(array_of_npy(CLAIMS[claim]))
    assert peak(lambda: _refused(content)) < MEGABYTE


def test_a_packed_update_that_claims_to_be_huge_is_set_aside() -> None:
    payload = pack_update(torch.ones(24), "float32").tobytes()
    most = struct.pack("<I", 2**32 - 1)
    payload = payload[:16] + most + payload[20:]
    checksum = struct.pack("<I", zlib.crc32(payload[:20] + payload[24:]))
    payload = payload[:20] + checksum + payload[24:]
    content = _reply(Array(np.frombuffer(payload, dtype=np.uint8)))
    report = AdjustmentReport(0.0, None, (0.0,), packed=(0,))
    content[REPORT_KEY] = ConfigRecord({REPORT_KEY: report.encode()})
    request = AdjustmentRequest(0.0, upload="packed")

    assert peak(lambda: _refused(content, request, "with 4294967295 entries")) < MEGABYTE


def test_a_report_costs_the_server_a_small_multiple_of_its_length() -> None:
    long = json.loads(AdjustmentReport(0.0, None, (0.0,)).encode())
    long["discarded"] = [0] * 100_000
    long["packed"] = list(range(100_000))
    text = json.dumps(long).encode()
    content = _reply(Array(np.zeros((6, 4), dtype=np.float32)))
    content[REPORT_KEY] = ConfigRecord({REPORT_KEY: text})

    assert peak(lambda: _refused(content, AdjustmentRequest(0.0))) < 20 * len(text)


@pytest.mark.parametrize("place", [1, 999_999_999])
def test_a_server_that_names_arrays_that_are_not_there_costs_the_client_nothing(place: int) -> None:
    request = AdjustmentRequest(0.3, 1, {place: 1.5})
    read = partial(consensus_members, request, b"\xff", [24])
    assert_refused_at_once(read, "the model has 1 arrays")


def test_consensus_sets_are_measured_before_they_are_unpacked() -> None:
    read = partial(consensus_members, AdjustmentRequest(0.3, 1, {0: 1.5}), b"abc", [HUGE])
    assert_refused_at_once(read, f"take {HUGE // 8} bytes, 3 came")


def _reply(array: Array) -> RecordDict:
    metrics = MetricRecord({"train_loss": 0.5, "num-examples": 10})
    return RecordDict({"arrays": ArrayRecord({"layer.weight": array}), "metrics": metrics})


def _refused(
    content: RecordDict, request: AdjustmentRequest | None = None, reason: str = ""
) -> None:
    project = Project("FedPW", "train_loss", "num-examples")
    asked = AskedRound(1, {1: request}, MODEL, project, is_first=True)
    good, bad, _ = screen_train_replies([Answer(1, content)], asked, Identities())
    assert not good
    assert reason in bad[0].reason


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _archive(folder: Path, **members: bytes) -> Path:
    arrays = {
        f"{kind}_{split}": _npy(np.zeros((4, 8, 8) if kind == "x" else 4, dtype))
        for kind, dtype in (("x", np.uint8), ("y", np.int64))
        for split in ("train", "test")
    }
    with zipfile.ZipFile(folder / "site.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**arrays, **members}.items():
            archive.writestr(f"{name}.npy", data)
    return folder


@pytest.mark.parametrize("entries", [10**9, HUGE, 10**15, 10**30])
def test_an_archive_whose_array_claims_to_be_huge_is_refused(tmp_path: Path, entries: int) -> None:
    _archive(tmp_path, x_train=npy(f"({entries},)", "'|u1'", bytes(256)))
    assert_refused_at_once(lambda: archives(tmp_path, ["site"]), r"site\.npz")


def test_an_archive_whose_directory_says_the_same_is_refused(tmp_path: Path) -> None:
    """As its array: neither the packed nor the unpacked size need be true."""
    claim = npy("(3000000000,)", "'|u1'", bytes(256))
    file = _archive(tmp_path, x_train=claim) / "site.npz"
    data = bytearray(file.read_bytes())
    entry = data.index(b"PK\x01\x02")
    assert data[entry + 46 :].startswith(b"x_train.npy")
    data[entry + 20 : entry + 28] = struct.pack("<II", 3 * 10**9, len(claim) - 256 + 3 * 10**9)
    file.write_bytes(data)
    assert_refused_at_once(lambda: archives(tmp_path, ["site"]), r"site\.npz")


def test_what_an_archive_holds_beside_its_four_arrays_is_not_unpacked(tmp_path: Path) -> None:
    _archive(tmp_path, bomb=_npy(np.zeros(64 * MEGABYTE, np.uint8)))
    assert (tmp_path / "site.npz").stat().st_size < 100 * KILOBYTE
    assert peak(lambda: archives(tmp_path, ["site"], image_size=8)) < 10 * MEGABYTE


def _safetensors(header: Mapping[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _one(shape: Sequence[int], end: int, dtype: str = "F32") -> bytes:
    return _safetensors({"w": {"dtype": dtype, "shape": list(shape), "data_offsets": [0, end]}})


class _Explosive:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a file was unpickled",)


FILES = {
    "a header of an exabyte": struct.pack("<Q", 2**60) + b"{}",
    "a tensor longer than the file": _one([HUGE], 4 * HUGE),
    "a tensor longer than its place": _one([HUGE], 0),
    "a tensor of more entries than can be counted": _one([2**40, 2**40], 0),
    "a place that ends before it begins": _safetensors(
        {"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}
    ),
    "brackets without end": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "a pickle": pickle.dumps(_Explosive()),
    "PyTorch's pickled format": zlib.compress(pickle.dumps(_Explosive())),
}
"""What may be in a file that should be safetensors'."""


@pytest.mark.parametrize("content", FILES)
def test_a_file_of_prepared_pictures_that_lies_is_not_taken(tmp_path: Path, content: str) -> None:
    file = tmp_path / "prepared"
    file.write_bytes(FILES[content])

    found = []
    assert peak(lambda: found.append(load_images(file))) < MEGABYTE
    assert found == [None]


@pytest.mark.parametrize("content", FILES)
@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors"])
def test_a_forged_checkpoint_that_lies_is_refused_and_the_one_before_taken(
    tmp_path: Path, name: str, content: str
) -> None:
    store = CheckpointStore(tmp_path)
    for server_round in (1, 2):
        store.save(Checkpoint(server_round, MODEL))
    _forge(tmp_path / "round-000002", name, FILES[content])

    assert_refused_at_once(lambda: store.load(2), "SafetensorError", CheckpointError)
    found = store.newest()
    assert found is not None
    assert found.round == 1


def test_a_digest_is_no_signature(tmp_path: Path) -> None:
    """Whoever may write to the folder may put another model there: SECURITY.md says so."""
    store = CheckpointStore(tmp_path / "own")
    other = CheckpointStore(tmp_path / "other")
    store.save(Checkpoint(1, MODEL))
    other.save(Checkpoint(1, {"layer.weight": torch.ones(6, 4)}))
    forged = (tmp_path / "other" / "round-000001" / "model.safetensors").read_bytes()
    _forge(tmp_path / "own" / "round-000001", "model.safetensors", forged)
    assert torch.equal(store.load(1).model["layer.weight"], torch.ones(6, 4))


def _forge(folder: Path, name: str, data: bytes) -> None:
    """Replace a file of a checkpoint, with the digests that belong to it."""
    (folder / name).write_bytes(data)
    content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    del content["sha256"]
    content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False)
    content["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps(content), encoding="utf-8")


# ── What one client can do ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("clients", "most"), [(2, 1.0), (3, 1.0), (4, 3 / 4), (20, 3 / 20)])
def test_the_default_bound_on_weights_bounds_nothing_up_to_three_clients(
    clients: int, most: float
) -> None:
    liar, *_ = bounded_weights([1.0, *[0.0] * (clients - 1)], FedPWSettings().max_weight)
    assert liar == pytest.approx(most)


# ── What leaves a client, and what a client can write on the server ───────────────────────────────


def test_with_local_dp_the_update_decides_nothing_of_a_reply_but_the_noised_arrays() -> None:
    """Else what stands beside them, the norms of the update for one, is told without any noise."""
    dp = LocalDpMod(clipping_norm=1.0, sensitivity=2.0, epsilon=1.0, delta=1e-5)
    small, large = (_beside_the_arrays([dp, FedPWMod(device="cpu")], size) for size in (0.01, 7.0))
    assert small == large


def _beside_the_arrays(mods: list[Mod], size: float) -> dict[str, dict[str, Any]]:
    """Train one client of FedPW's by an update of some size; return its reply without arrays."""
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        noise = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
        (array,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        return Message(_reply(Array(array + np.float32(size) * noise)), reply_to=message)

    request = AdjustmentRequest(0.3, 1, {0: 1.5})
    config = ConfigRecord({"server-round": 3, REQUEST_KEY: request.encode()})
    config[CONSENSUS_KEY] = b"\xf0\x0f\xff"
    arrays = ArrayRecord({"layer.weight": Array(MODEL["layer.weight"].numpy())})
    content = RecordDict({"arrays": arrays, "config": config})
    message = Message(content, dst_node_id=1, message_type="train")
    reply = app(message, Context(1, 1, {}, RecordDict(), {}))
    assert reply.has_content()
    return {name: dict(record) for name, record in reply.content.items() if name != "arrays"}


def test_the_error_text_of_a_client_cannot_pass_for_a_line_of_the_log(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    forged = "WARNING : aggregate_train: round 1, client 2 (node 2) quarantined: NaN"
    strategy = FedPW(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    arrays = ArrayRecord({"layer.weight": Array(MODEL["layer.weight"].numpy())})
    grid = ClientsGrid({1: lambda message: []})
    (asked,) = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    strategy.aggregate_train(1, [Message(Error(2, f"lost\n{forged}"), reply_to=asked)])
    assert not grid.sent
    lines = [line for record in flower_log.messages for line in record.splitlines()]
    assert any("node 1 failed" in line for line in lines)
    assert not any(line.startswith(forged) for line in lines)
