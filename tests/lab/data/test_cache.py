"""Images are decoded once a machine, and whatever happens to the cache, they are right."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.images import are_same, random_images

from fedpw_flwr.lab.data import cache
from fedpw_flwr.lab.data.cache import (
    TrainAndTest,
    cache_folder,
    cached,
    load_images,
    save_images,
    source_key,
)

DAY = 86_400


def _images(count: int = 20) -> TrainAndTest:
    return random_images(count, 0), random_images(count, 1)


def _are_those(found: TrainAndTest, count: int = 20) -> bool:
    return all(map(are_same, found, _images(count)))


class Counted:
    """Makes images, and counts how often."""

    calls = 0

    def __call__(self) -> TrainAndTest:
        self.calls += 1
        return _images()


def _named(name: str, *files: Path) -> Callable[[], str]:
    return lambda: source_key(name, files)


def _files() -> list[Path]:
    return sorted(cache_folder().iterdir())


def _age(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * DAY,) * 2)


def test_images_are_built_once_and_come_back_as_they_were_mapped_from_their_file() -> None:
    build = Counted()
    first, again = cached(_named("a"), build), cached(_named("a"), build)
    assert build.calls == 1
    (file,) = _files()
    assert str(file) in Path("/proc/self/maps").read_text()
    assert _are_those(first)
    assert _are_those(again)


def test_a_source_that_changed_or_was_downloaded_while_building_is_another(tmp_path: Path) -> None:
    source = tmp_path / "images.npz"
    build = Counted()

    def download() -> TrainAndTest:
        if not source.exists():
            source.write_bytes(b"one")
        return build()

    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: source.write_bytes(b"others"),
        lambda: os.utime(source, ns=(1, 1)),
    ]
    for calls, change in enumerate(changes, start=1):
        change()
        for _ in range(2):
            cached(_named("a", source), download)
        assert build.calls == calls


def test_key_tells_calls_paths_and_code_apart_and_not_the_order_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for file in (first, second):
        file.write_bytes(b"same")
        os.utime(file, ns=(1, 1))
    files = [[first], [second], [first, second], []]
    keys = [source_key("b", [first]), *(source_key("a", some) for some in files)]
    assert source_key("a", [second, first]) == keys[3]
    assert source_key("a", [tmp_path, tmp_path / "missing"]) == keys[4]
    monkeypatch.setattr("fedpw_flwr.__version__", "99")
    keys.append(source_key("a", []))
    monkeypatch.setattr(cache, "_code_digest", lambda: "other code")
    keys.append(source_key("a", []))
    assert len(set(keys)) == 7


@pytest.mark.parametrize("damage", ["empty", "cut short", "other header", "other content"])
def test_a_damaged_file_is_built_again_and_replaced(damage: str) -> None:
    build = Counted()
    cached(_named("a"), build)
    (file,) = _files()
    content = file.read_bytes()
    damaged = {
        "empty": b"",
        "cut short": content[:-10],
        "other header": content.replace(b"labels", b"values"),
        "other content": b"no such file" * 50,
    }[damage]
    assert damaged != content
    # In place of the mapped file, not into it.
    file.unlink()
    file.write_bytes(damaged)
    for _ in range(2):
        assert _are_those(cached(_named("a"), build))
        assert build.calls == 2


def test_a_folder_that_cannot_be_written_only_means_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flower_log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FEDPW_CACHE_DIR", str(tmp_path / "file" / "cache"))
    build = Counted()
    for calls in (1, 2):
        assert _are_those(cached(_named("a"), build))
        assert build.calls == calls
    assert flower_log.records[0].levelno == logging.WARNING
    assert "Images are not cached" in flower_log.text


def test_an_error_while_building_passes_and_leaves_no_file() -> None:
    def fails() -> TrainAndTest:
        raise FileNotFoundError("nothing there")

    with pytest.raises(FileNotFoundError, match="nothing there"):
        cached(_named("a"), fails)
    assert not cache_folder().exists()


def _build_at_once(
    barrier: multiprocessing.synchronize.Barrier, answers: multiprocessing.Queue[bool]
) -> None:
    def build() -> TrainAndTest:
        barrier.wait(120)
        return _images(2000)

    answers.put(_are_those(cached(_named("together"), build), 2000))


def test_processes_that_build_at_once_do_not_hurt_each_other() -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    other = context.Process(target=_build_at_once, args=(barrier, answers))
    other.start()
    _build_at_once(barrier, answers)
    assert [answers.get(timeout=120) for _ in range(2)] == [True, True]
    other.join(60)
    assert [file.suffix for file in _files()] == [".safetensors"]


def test_what_nobody_used_for_long_goes_and_nothing_else() -> None:
    cached(_named("used"), Counted())
    (used,) = _files()
    _age(used, 40)
    cached(_named("used"), Counted())
    for name, days in {"old.safetensors": 31, "new.safetensors": 2, "of somebody else": 31}.items():
        (cache_folder() / name).write_bytes(b"")
        _age(cache_folder() / name, days)
    for name, days in {"unfinished-old": 2, "unfinished-new": 0}.items():
        (cache_folder() / name).mkdir()
        (cache_folder() / name / "part").write_bytes(b"")
        _age(cache_folder() / name, days)
    before = set(_files())
    cached(_named("more"), Counted())
    gone = before - set(_files())
    assert {path.name for path in gone} == {"old.safetensors", "unfinished-old"}


def test_variables_say_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("FEDPW_CACHE_DIR", "~/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/common")
    assert cache_folder() == Path("/home/somebody/own")
    monkeypatch.setenv("FEDPW_CACHE_DIR", "")
    assert cache_folder() == Path("/common/fedpw")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/somebody/.cache/fedpw")


def test_loaded_images_outlive_the_file_and_do_not_change_it(tmp_path: Path) -> None:
    file = tmp_path / "saved"
    assert load_images(file) is None
    save_images(file, _images())
    assert list(tmp_path.iterdir()) == [file]
    loaded, before = load_images(file), file.read_bytes()
    assert loaded is not None
    loaded[0].features.zero_()
    assert file.read_bytes() == before
    file.unlink()
    assert are_same(loaded[1], _images()[1])
