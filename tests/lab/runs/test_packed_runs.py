"""Packed runs are what their folders were, in a file that depends on nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from support.made_runs import write_run

from fedpw_flwr.lab.runs.packed_runs import PackedRun, pack_runs, packed_runs
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError

FIGURES = ("config.yaml", "metrics.jsonl", "summary.json")


def contents(run: RunFolder) -> dict[str, bytes]:
    return {name: run.content(name) for name in FIGURES}


def test_a_packed_run_reads_as_its_folder_did(tmp_path: Path) -> None:
    there = write_run(tmp_path / "elsewhere" / "first", domains=["é"])
    pack_runs(tmp_path / "kept.tar.xz", [there])
    (run,) = packed_runs(tmp_path / "kept.tar.xz")
    assert run.path == tmp_path / "kept" / "first"
    assert contents(run) == contents(there)
    assert run.read_rounds() == there.read_rounds()
    # As JSON: NaN, the spread over one domain, is no value of its own there.
    assert run.read_summary().to_json() == there.read_summary().to_json()
    assert run.read_holdings() is None


def test_the_same_runs_give_the_same_bytes_whatever_their_order_date_and_folder(
    tmp_path: Path,
) -> None:
    one, two = write_run(tmp_path / "a" / "one"), write_run(tmp_path / "a" / "two", percent=30)
    pack_runs(tmp_path / "runs.tar.xz", [one, two])
    first = (tmp_path / "runs.tar.xz").read_bytes()
    moved = shutil.copytree(two.path, tmp_path / "b" / "two", copy_function=shutil.copyfile)
    os.utime(moved / "summary.json", (1.0, 1.0))
    pack_runs(tmp_path / "runs.tar.xz", [RunFolder(moved), one])
    assert (tmp_path / "runs.tar.xz").read_bytes() == first
    pack_runs(tmp_path / "runs.tar.xz", packed_runs(tmp_path / "runs.tar.xz"))
    assert (tmp_path / "runs.tar.xz").read_bytes() == first


def test_unpacking_gives_the_folders_with_nothing_but_their_figures(tmp_path: Path) -> None:
    there = write_run(tmp_path / "elsewhere" / "first")
    (there.path / "model.safetensors").write_bytes(b"large")
    pack_runs(tmp_path / "runs.tar.xz", [there])
    subprocess.run(["tar", "-xf", "runs.tar.xz"], cwd=tmp_path, check=True)
    unpacked = RunFolder(tmp_path / "runs" / "first")
    assert {path.name for path in unpacked.path.iterdir()} == set(FIGURES)
    assert contents(unpacked) == contents(there)


def test_what_tar_made_is_read_without_checkpoints_and_hidden_folders(tmp_path: Path) -> None:
    there = write_run(tmp_path / "some" / "deep" / "first")
    write_run(there.path / "checkpoints" / "copy")
    write_run(tmp_path / "some" / ".hidden")
    os.utime(there.path / "summary.json", (1234.0, 1234.0))
    subprocess.run(["tar", "-czf", "some.tgz", "./some"], cwd=tmp_path, check=True)
    (run,) = packed_runs(tmp_path / "some.tgz")
    assert (run.path, run.finished_at) == (there.path, 1234.0)
    assert contents(run) == contents(there)


def test_a_file_that_was_not_packed_is_said_to_be_missing(tmp_path: Path) -> None:
    run = PackedRun(tmp_path / "first", {"config.yaml": b""})
    with pytest.raises(RunFolderError, match=r"first/metrics\.jsonl is missing"):
        run.read_rounds()


@pytest.mark.parametrize("compression", ["xz", ""])
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path, compression: str) -> None:
    write_run(tmp_path / "a" / "one")
    file = tmp_path / "runs.tar"
    with tarfile.open(file, f"w:{compression}") as stream:  # type: ignore[call-overload]
        stream.add(tmp_path / "a", "a")
    members = file.read_bytes().rstrip(b"\0")
    for kept in range(0, len(members), 256):
        file.write_bytes(members[:kept])
        with pytest.raises(RunFolderError, match=r"runs\.tar cannot be read as a tar file of ru"):
            packed_runs(file)
