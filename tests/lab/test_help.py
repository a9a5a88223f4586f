"""What the commands say of themselves."""

import re
import shlex
import subprocess
from pathlib import Path

from support.commands import COMMANDS, typed

from fedpw_flwr.lab.config.configuration import compose_configuration


def test_the_commands_help_begins_with_five_examples_that_can_be_typed(tmp_path: Path) -> None:
    help_text = typed("fedpw", "--help", folder=tmp_path).stdout
    beginning = help_text.partition("== Configuration groups ==")[0]
    examples = re.findall(r"^  fedpw .*#", beginning, re.M)
    assert len(examples) == 5
    for example in examples:
        words = [word for word in shlex.split(example, comments=True)[1:] if word != "-m"]
        # Of a sweep, the first run.
        compose_configuration(overrides=re.sub(r"(=\w+),\S+", r"\1", " ".join(words)))


def test_help_can_be_read_in_part() -> None:
    words = f"set -o pipefail; '{COMMANDS / 'fedpw'}' --help | head -1"
    done = subprocess.run(
        ["bash", "-c", words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_the_doctors_text_is_asked_for_in_bug_reports(tmp_path: Path) -> None:
    assert "bug report" in typed("fedpw-doctor", "--help", folder=tmp_path).stdout
