"""What people type reaches hydra as they mean it, or they read what to type."""

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fedpw_flwr.lab.config.command_line import readable_words
from fedpw_flwr.lab.config.configuration import ConfigurationError, quoted


@pytest.mark.parametrize(
    "value",
    [
        "~/photos",
        "/data/a=b",
        "/data/größe",
        "/data/(old)",
        "/data/#3",
        "/data/it's",
        "/数据/x",
        "/a~b c, d",
        'say "x"',
    ],
)
def test_a_path_outside_hydras_grammar_is_told_with_the_form_to_type(value: str) -> None:
    with pytest.raises(ConfigurationError, match="Type ") as refused:
        readable_words(["seed=1", f"dataset.folder={value}"])
    (typed,) = shlex.split(str(refused.value).rpartition("Type ")[2])
    assert readable_words([typed]) == [typed]
    override = OverridesParser.create().parse_override(typed)
    assert override.key_or_group == "dataset.folder"
    assert override.value() == value


def test_a_path_with_a_comma_is_no_sweep_unless_it_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match=r"""Type 'dataset\.folder="/a,b"'"""):
        readable_words(["dataset.folder=/a,b"])
    for words in (["-m", "dataset.folder=/a,b"], ["seed=1,2"], ["dataset.folder='/a,b'"]):
        assert readable_words(words) == words


def test_what_hydra_can_read_or_explain_stays_as_it_is() -> None:
    words = ["--config-dir", "my=conf~", "a.b=C:/x y", "~strategy.beta", "seed=[1", "--cfg", "job"]
    assert readable_words(words) == words


def test_the_home_folder_is_put_in_where_hydra_makes_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run, sweep = readable_words(
        ["hydra.run.dir='~/a, b/${seed}'", f"hydra.sweep.dir={quoted('~/läufe')}"]
    )
    parse = OverridesParser.create().parse_override
    assert parse(run).value() == f"{tmp_path}/a, b/${{seed}}"
    assert parse(sweep).value() == f"{tmp_path}/läufe"
    assert readable_words(["--config-dir=~/conf"]) == [f"--config-dir={tmp_path}/conf"]
