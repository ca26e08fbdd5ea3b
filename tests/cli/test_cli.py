"""The command line: subcommands, help, bad arguments."""

from __future__ import annotations

import pytest

import openmythos
from openmythos.cli import main


def test_help_lists_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "doctor" in text
    assert "demo" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"openmythos {openmythos.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param([], "command", id="no command"),
        pytest.param(["dance"], "dance", id="unknown command"),
        pytest.param(["demo", "--size", "2b"], "2b", id="unknown size"),
        pytest.param(["demo", "--rounds", "0"], "must be at least 1", id="no rounds"),
        pytest.param(["demo", "--rounds", "many"], "many", id="rounds not a number"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err
