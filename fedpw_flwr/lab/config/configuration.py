"""The configuration of a run: hydra's, composed once per process, wrong keys and values refused.

Under `flwr run`, the ServerApp and every ClientApp compose the same configuration from the same two
strings, the name of a config and a line of hydra overrides. Light on purpose: the command needs it
before anything heavy is imported.
"""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from fedpw_flwr.lab.config.setting_rules import (
    GROUPS,
    RUN,
    RUNTIME,
    STOP,
    broken_rules,
    trackers_named,
    wrong_settings,
)

_ABSENT = object()

_composing = Lock()


class ConfigurationError(ValueError):
    """The configuration cannot be used; the message says which key or value and what to do."""


@dataclass
class RuntimeSettings:
    """Where clients run and how long the server waits for them.

    ``conf/runtime/local.yaml`` explains each setting. ConfigurationError if a value is out of
    range, or two contradict each other.
    """

    device: str = "auto"
    cpus_per_client: int = 1
    gpus_per_client: float = 0.0
    total_cpus: int | None = None
    ray_address: str | None = None
    niceness: int = 0
    runs_at_a_time: str | int = "auto"
    connect_timeout: float = 120.0
    round_timeout: float = 3600.0
    profile: bool = False
    checkpoint_every: int = 1
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        wrong = wrong_settings(vars(self), RUNTIME, "runtime.") or list(self._contradictions())
        if wrong:
            raise ConfigurationError("\n".join(wrong))

    def _contradictions(self) -> Iterator[str]:
        if self.gpus_per_client > 1 and self.gpus_per_client % 1:
            yield (
                f"runtime.gpus_per_client={self.gpus_per_client}: above 1 it must be a whole "
                "number, for Ray gives a client a share of one GPU, or whole ones"
            )
        if self.device.startswith("cuda") and self.gpus_per_client == 0:
            yield (
                f"runtime.device={self.device}, but runtime.gpus_per_client is 0 and Ray hides the "
                "GPU from such clients: set a share, for example runtime.gpus_per_client=0.25"
            )
        if self.total_cpus is not None and self.total_cpus < self.cpus_per_client:
            yield (
                f"runtime.total_cpus is {self.total_cpus}, but one client alone takes "
                f"runtime.cpus_per_client={self.cpus_per_client}: raise the first or lower the "
                "second"
            )
        if self.ray_address is None:
            return
        if ":" not in self.ray_address or "://" in self.ray_address:
            yield (
                f"runtime.ray_address={self.ray_address!r} is not host and port of a Ray cluster "
                "that this machine belongs to, such as 192.168.0.10:6379, as `ray start --head` "
                "prints it"
            )
        if self.total_cpus is not None:
            yield (
                f"runtime.total_cpus={self.total_cpus} is for a run's own Ray: leave it out, and "
                "tell a cluster how many cores a machine has by `ray start --num-cpus=...`"
            )


def config_folder() -> Path:
    """Return the folder of the configuration groups: the wheel's, else the checkout's."""
    package = Path(__file__).resolve().parents[2]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigurationError(
        f"no configuration found: neither {package / 'conf'} nor {package.parent / 'conf'} holds "
        "config.yaml. Install fedpw-flwr again, or run from a complete checkout"
    )


@lru_cache(maxsize=4)
def compose_configuration(config_name: str = "config", overrides: str = "") -> DictConfig:
    """Compose and check the configuration; the same arguments compose once per process.

    The overrides are hydra's, as typed on a command line, separated by blanks. The configuration is
    read-only; interpolations are resolved when read. ConfigurationError as `checked` raises it.
    """
    try:
        words = shlex.split(overrides)
    except ValueError as error:
        raise ConfigurationError(
            f"the overrides {overrides!r} cannot be split into words: {error}"
        ) from error
    with _composing:
        # Hydra's state is global to the process; another user of hydra in it must not be disturbed.
        before = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(config_folder()), version_base="1.3"):
                configuration = compose(config_name, words)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigurationError(
                f"{what_hydra_said(error)}\n(config {config_name!r}, overrides {overrides!r})"
            ) from error
        finally:
            GlobalHydra.instance().hydra = before
    return checked(configuration)


def checked(configuration: DictConfig) -> DictConfig:
    """Check a composed configuration's keys and values, and return it read-only.

    ConfigurationError if a key is unknown, a value has the wrong type or range, or one that must be
    given is not.
    """
    with _in_our_words():
        without = sorted(OmegaConf.missing_keys(configuration))
    if without:
        raise ConfigurationError("\n".join(_how_to_give(key, configuration) for key in without))
    plain = _plain(configuration)
    wrong = wrong_settings(dict.fromkeys(RUN) | plain, RUN)
    wrong = wrong or wrong_settings(plain.get("stop") or {}, STOP, "stop.")
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    present = _with_modules(
        OmegaConf.to_container(configuration), r"fedpw_flwr\.", "fedpw_flwr.lab."
    )
    configuration = OmegaConf.create(present)
    for group in GROUPS:
        if "_target_" not in plain[group]:
            choices = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
            raise ConfigurationError(
                f"{group} has no _target_: choose one of conf/{group}/ by its file name, for "
                f"example {group}={choices[0]}"
            )
    if "name" not in configuration.strategy:
        raise ConfigurationError("strategy has no name: it labels the run in tables and plots")
    runtime_settings(configuration)
    wrong = [line for group in GROUPS for line in broken_rules(group, _plain(configuration[group]))]
    if wrong:
        raise ConfigurationError("\n".join(wrong))
    OmegaConf.set_readonly(configuration, True)
    return configuration


def _with_modules(value: Any, before: str, after: str, key: object = None) -> Any:
    """Return a nested configuration in which every ``_target_`` has the module's other name.

    Configurations of one's own, and those of finished runs, name objects by modules that have moved
    since. They still work, and a run is the same run where only a module has moved.
    """
    if isinstance(value, dict):
        return {key: _with_modules(one, before, after, key) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_modules(one, before, after) for one in value]
    if key == "_target_" and isinstance(value, str):
        return re.sub(rf"^{before}(?=(data|models|training)\.)", after, value)
    return value


def _how_to_give(key: str, configuration: DictConfig) -> str:
    dataset = configuration.dataset
    if key == "dataset.folder" and str(dataset.get("_target_", "")).endswith("archives.archives"):
        files = ", ".join(f"{domain}.npz" for domain in dataset.domains)
        return (
            f"{key} is not set: it is the folder that holds {files}; "
            f"give it on the command line, as in {key}=/path/to/archives"
        )
    return f"{key} is not set: give it on the command line, as in {key}=..."


def group_settings(configuration: DictConfig, group: str) -> dict[str, Any]:
    """Return what a group is built from, resolved: all of it but `name`, its label in tables."""
    settings = _plain(configuration[group])
    return {key: value for key, value in settings.items() if key != "name"}


def stop_settings(configuration: DictConfig) -> dict[str, Any] | None:
    """Return when a run ends early, resolved; None where only its last round ends it."""
    stop = _plain(configuration).get("stop") or {}
    active = stop.get("target") is not None or stop.get("patience") is not None
    return stop if active else None


def trackers_of(configuration: DictConfig) -> list[str]:
    """Return the names of the trackers that a run is followed in."""
    return trackers_named(_plain(configuration).get("tracking"))


def runtime_settings(configuration: DictConfig) -> RuntimeSettings:
    """Return the runtime group, typed and checked; numbers may be texts, as of ``oc.env``."""
    try:
        typed = OmegaConf.merge(OmegaConf.structured(RuntimeSettings), configuration.runtime)
        settings = OmegaConf.to_object(typed)
    except OmegaConfBaseException as error:
        wrong = wrong_settings(_plain(configuration.runtime), RUNTIME, "runtime.")
        raise ConfigurationError("\n".join(wrong) or what_hydra_said(error)) from error
    assert isinstance(settings, RuntimeSettings)
    return settings


def _plain(configuration: DictConfig) -> dict[str, Any]:
    """Return a configuration with every interpolation resolved."""
    with _in_our_words():
        plain = OmegaConf.to_container(configuration, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def resolved_yaml(configuration: DictConfig) -> str:
    """Return the configuration as YAML with every interpolation resolved."""
    return OmegaConf.to_yaml(configuration, resolve=True, sort_keys=False)


def run_fingerprint(configuration: DictConfig) -> dict[str, Any]:
    """Return what of the configuration a run must keep when it goes on: all that changes results.

    It may go on elsewhere, with its data in another folder, with other resources, for more rounds,
    with another end, and wait longer for its clients.
    """
    resolved = OmegaConf.to_container(configuration, resolve=True)
    nested = _with_modules(resolved, r"fedpw_flwr\.lab\.", "fedpw_flwr.")
    left_out = ("runtime", "rounds", "resume", "stop", "tracking")
    kept = {key: value for key, value in nested.items() if key not in left_out}
    if (every := (nested.get("runtime") or {}).get("evaluate_every", 1)) != 1:
        kept["evaluate_every"] = every
    return _of_the_results(kept)


def _of_the_results(nested: dict[Any, Any]) -> dict[str, Any]:
    left_out = ("folder", "wait_for_clients", "when_missing", "download", "url")
    kept: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            kept[str(key)] = _of_the_results(value)
        elif key not in left_out:
            # Where archives lie changes nothing; whether they are read in place of full sets does.
            kept[str(key)] = value is not None if is_folder(key) else value
    return kept


def is_folder(key: object) -> bool:
    """Return whether the value of a key is a folder: ``folder``, or a name that ends so."""
    return key == "folder" or str(key).endswith("_folder")


def with_changes(configuration: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a run's configuration with other values for keys that it has.

    ConfigurationError if an override is not KEY=VALUE, or the configuration has no such key.
    """
    changed = copy.deepcopy(configuration)
    OmegaConf.set_readonly(changed, False)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not key or not equals:
            raise ConfigurationError(f"{override!r} is no override: write it as KEY=VALUE")
        here = OmegaConf.select(changed, key, default=_ABSENT)
        if here is _ABSENT:
            raise ConfigurationError(f"the run's configuration has no key {key!r} to override")
        if isinstance(here, DictConfig) and not value.startswith("{"):
            said = "a finished choice of the run's; change single values"
            raise ConfigurationError(f"{override}: {said}, {key}.…=…")
    try:
        changed.merge_with_dotlist(list(overrides))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigurationError(f"the overrides cannot be used: {error}") from error
    return changed


def override_key(override: str) -> str:
    """Return the key that an override is about."""
    return override.split("=", 1)[0].lstrip("+~")


def quoted(value: str) -> str:
    """Return a value as overrides write it to give a key this very text, whatever is in it."""
    return str(QuotedString(value, Quote.double).with_quotes())


def with_absolute_folders(configuration: DictConfig, base: Path) -> DictConfig:
    """Return the configuration with every folder absolute, relative ones starting from `base`."""
    absolute = copy.deepcopy(configuration)
    OmegaConf.set_readonly(absolute, False)
    for key, folder in _folders(OmegaConf.to_container(configuration, resolve=True)):
        OmegaConf.update(absolute, key, str((base / Path(folder).expanduser()).resolve()))
    OmegaConf.set_readonly(absolute, True)
    return absolute


def _folders(settings: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted key of every folder, and what it is set to."""
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _folders(value, f"{above}{key}.")
        elif is_folder(key) and isinstance(value, str):
            yield f"{above}{key}", value


def count_clients(configuration: DictConfig) -> int:
    """Return the number of clients, without loading any data.

    ConfigurationError if the partition cannot be built, or the dataset does not list its domains.
    """
    if "domains" not in configuration.dataset:
        raise ConfigurationError(
            "dataset has no key 'domains': the number of clients follows from its length"
        )
    with named_part("partition"):
        partition = instantiate(group_settings(configuration, "partition"))
        return int(partition.num_clients(list(configuration.dataset.domains)))


@contextmanager
def named_part(part: str) -> Iterator[None]:
    """Raise whatever goes wrong inside as a ConfigurationError that names the part."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, OSError) as error:
        cause: BaseException = error
        while isinstance(cause, HydraException) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise ConfigurationError(f"{part}: {cause}") from error


@contextmanager
def _in_our_words() -> Iterator[None]:
    try:
        yield
    except OmegaConfBaseException as error:
        raise ConfigurationError(what_hydra_said(error)) from error


def what_hydra_said(error: BaseException) -> str:
    """Return hydra's words without its inner names, and the reason where a cause hides it."""
    key = re.match(r"Could not override '(.+)'", str(error))
    if key is not None and "is not in struct" in str(error.__cause__):
        return f"there is no setting {key[1]}: correct its name"
    inner = ("object_type=", "reference_type=", "provider=", "Config search path:")
    said = str(error).strip().splitlines()
    lines = ["\n".join(line for line in said if not line.strip().startswith(inner)).strip()]
    cause = error.__cause__
    while cause is not None:
        text = str(cause).strip()
        if text and text not in lines[-1]:
            lines.append(text)
        cause = cause.__cause__
    return "\n".join(lines)
