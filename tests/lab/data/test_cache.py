"""Pictures are decoded once a machine, and whatever happens to the cache, they are right."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedpw_flwr.lab.data import cache
from fedpw_flwr.lab.data.cache import cache_folder, cached, collection_key
from fedpw_flwr.lab.data.images import Domain, DomainCollection, ImageSet


def _collection(seed: int = 0, count: int = 20) -> DomainCollection:
    generator = torch.Generator().manual_seed(seed)

    def pictures() -> ImageSet:
        images = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
        return ImageSet(images, torch.randint(0, 10, (count,), generator=generator))

    return DomainCollection((Domain("a", pictures(), pictures()),), num_classes=10)


def _equal(first: DomainCollection, second: DomainCollection) -> bool:
    return all(
        torch.equal(mine.images, other.images) and torch.equal(mine.labels, other.labels)
        for mine, other in (
            (first.domains[0].train, second.domains[0].train),
            (first.domains[0].test, second.domains[0].test),
        )
    )


class Counted:
    """Builds a collection, and counts how often."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.calls = 0

    def __call__(self) -> DomainCollection:
        self.calls += 1
        return _collection(self.seed)


def _named(name: str) -> Callable[[], str]:
    return lambda: collection_key(name, [])


def _files() -> list[Path]:
    return sorted(cache_folder().iterdir())


def test_pictures_are_built_once_and_come_back_as_they_were() -> None:
    build = Counted()
    first, again = cached(_named("a"), build), cached(_named("a"), build)
    assert build.calls == 1
    assert _equal(first, _collection())
    assert _equal(again, _collection())
    assert again.names == ("a",)


def test_cached_pictures_are_mapped_from_their_file_from_the_first_time() -> None:
    mapped = cached(_named("a"), Counted())
    (file,) = _files()
    assert str(file) in Path("/proc/self/maps").read_text()
    assert len(mapped.domains[0].train) == 20


def test_other_pictures_have_a_file_of_their_own() -> None:
    first, second = cached(_named("a"), Counted(0)), cached(_named("b"), Counted(1))
    assert not _equal(first, second)
    assert len(_files()) == 2


def test_a_source_that_changed_is_read_again(tmp_path: Path) -> None:
    source = tmp_path / "pictures.npz"
    source.write_bytes(b"one")
    build = Counted()
    cached(lambda: collection_key("a", [source]), build)
    cached(lambda: collection_key("a", [source]), build)
    assert build.calls == 1
    source.write_bytes(b"others")
    cached(lambda: collection_key("a", [source]), build)
    assert build.calls == 2
    os.utime(source, ns=(1, 1))
    cached(lambda: collection_key("a", [source]), build)
    assert build.calls == 3


def test_key_tells_calls_and_places_apart_and_not_the_order_of_files(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for file in (first, second):
        file.write_bytes(b"same")
        os.utime(file, ns=(1, 1))
    keys = [
        collection_key("a", [first]),
        collection_key("b", [first]),
        collection_key("a", [second]),
        collection_key("a", [first, second]),
        collection_key("a", []),
    ]
    assert len(set(keys)) == 5
    assert collection_key("a", [second, first]) == keys[3]
    assert collection_key("a", [tmp_path, tmp_path / "missing"]) == keys[4]


def test_another_version_or_other_code_reads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    key = collection_key("a", [])
    monkeypatch.setattr("fedpw_flwr.__version__", "99")
    assert collection_key("a", []) != key
    monkeypatch.undo()
    monkeypatch.setattr(cache, "_code_digest", lambda: "other code")
    assert collection_key("a", []) != key


def test_files_that_building_downloads_are_found_again_by_the_next_run(tmp_path: Path) -> None:
    source = tmp_path / "downloaded"
    build = Counted()

    def download() -> DomainCollection:
        source.write_bytes(b"pictures")
        return build()

    for _ in range(2):
        cached(lambda: collection_key("a", [source]), download)
    assert build.calls == 1


@pytest.mark.parametrize("damage", ["empty", "cut short", "other header", "other content"])
def test_a_damaged_file_is_built_again_and_replaced(damage: str) -> None:
    build = Counted()
    cached(_named("a"), build)
    (file,) = _files()
    content = file.read_bytes()
    damaged = {
        "empty": b"",
        "cut short": content[:-10],
        "other header": content.replace(b"num_classes", b"num_kinds__"),
        "other content": b"no such file" * 50,
    }[damage]
    assert damaged != content
    # In place of the mapped file, not into it.
    file.unlink()
    file.write_bytes(damaged)
    assert _equal(cached(_named("a"), build), _collection())
    assert build.calls == 2
    cached(_named("a"), build)
    assert build.calls == 2


def test_a_folder_that_cannot_be_written_only_means_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FEDPW_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(cache.logger, "propagate", True)
    build = Counted()
    with caplog.at_level(logging.WARNING):
        assert _equal(cached(_named("a"), build), _collection())
    assert "Pictures are not cached" in caplog.text
    cached(_named("a"), build)
    assert build.calls == 2


def test_an_error_while_building_passes_and_leaves_no_file() -> None:
    def fails() -> DomainCollection:
        raise FileNotFoundError("nothing there")

    with pytest.raises(FileNotFoundError, match="nothing there"):
        cached(_named("a"), fails)
    assert not cache_folder().exists()


def test_changing_what_was_loaded_does_not_change_the_cache() -> None:
    cached(_named("a"), Counted()).domains[0].train.images.zero_()
    assert _equal(cached(_named("a"), Counted()), _collection())


def _build_at_once(
    barrier: multiprocessing.synchronize.Barrier, answers: multiprocessing.Queue[bool]
) -> None:
    def build() -> DomainCollection:
        barrier.wait(60)
        return _collection(count=2000)

    answers.put(_equal(cached(_named("together"), build), _collection(count=2000)))


def test_processes_that_build_at_once_do_not_hurt_each_other() -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_build_at_once, args=(barrier, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert results == [True, True]
    assert [file.suffix for file in _files()] == [".safetensors"]


def test_what_nobody_used_for_long_goes_and_nothing_else() -> None:
    folder = cache_folder()
    folder.mkdir(parents=True)
    month, day = 31 * 86_400, 2 * 86_400
    ages = {"old.safetensors": month, "new.safetensors": day, "of somebody else": month}
    for name, age in ages.items():
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (time.time() - age,) * 2)
    for name, age in {"unfinished-old": day, "unfinished-new": 0}.items():
        (folder / name).mkdir()
        (folder / name / "part").write_bytes(b"")
        os.utime(folder / name, (time.time() - age,) * 2)
    cached(_named("a"), Counted())
    left = {file.name for file in _files() if len(file.name) < 30}
    assert left == {"new.safetensors", "of somebody else", "unfinished-new"}


def test_using_pictures_keeps_them() -> None:
    cached(_named("a"), Counted())
    (file,) = _files()
    os.utime(file, (time.time() - 40 * 86_400,) * 2)
    cached(_named("a"), Counted())
    build = Counted(1)
    cached(_named("b"), build)
    assert len(_files()) == 2


def test_variables_say_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("FEDPW_CACHE_DIR", "~/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/common")
    assert cache_folder() == Path("/home/somebody/own")
    monkeypatch.setenv("FEDPW_CACHE_DIR", "")
    assert cache_folder() == Path("/common/fedpw")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/somebody/.cache/fedpw")
