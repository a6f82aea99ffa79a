"""The command: verbs, help, exit status, and errors that end as one line."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from fusion3d import __version__, cli
from fusion3d.errors import DataError

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def verb(monkeypatch):
    """Replace the body of the verb ``train``; returns what it was called with."""
    calls: list[list[str]] = []

    def install(body):
        module = types.ModuleType("fake_verb")
        module.main = lambda argv: (calls.append(argv), body())[1]
        monkeypatch.setitem(sys.modules, "fake_verb", module)
        monkeypatch.setitem(cli.VERBS, "train", ("fake_verb:main", "a stand-in"))
        return calls

    return install


def raises(error):
    def body():
        raise error

    return body


def test_help_lists_every_verb_with_one_line(capsys):
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, text) in cli.VERBS.items():
        assert any(line.split()[:1] == [name] and line.endswith(text) for line in lines)
    assert cli.main([]) == 2
    assert cli.main(["benchmark", "--help"]) == 0
    assert "model" in capsys.readouterr().out


def test_evaluate_finds_its_suite(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(cli, "_call", lambda target, argv: calls.append((target, argv)) or 0)
    assert cli.evaluate(["--checkpoint", "x", "--data.root", "y"]) == 0
    assert cli.evaluate(["--checkpoint", "x", "--suite", "robustness", "--severities", "1"]) == 0
    assert calls == [
        ("fusion3d.engine.evaluate:main", ["--checkpoint", "x", "--data.root", "y"]),
        (cli.SUITES["robustness"], ["--checkpoint", "x", "--severities", "1"]),
    ]
    with pytest.raises(SystemExit):
        cli.evaluate(["--suite", "other"])
    assert "robustness" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"fusion3d {__version__}"


def test_unknown_verb_names_the_nearest(capsys):
    assert cli.main(["evalute"]) == 2
    assert "did you mean 'evaluate'?" in capsys.readouterr().err


def test_arguments_and_exit_status_pass_through(verb):
    calls = verb(lambda: 3)
    assert cli.main(["train", "configs/demo.yaml", "--seed", "1"]) == 3
    assert calls == [["configs/demo.yaml", "--seed", "1"]]
    verb(lambda: None)
    assert cli.run("train", []) == 0


def test_expected_error_is_one_line(verb, capsys):
    verb(raises(DataError("data/x: there is no table scene.json; expected a nuScenes dataroot")))
    assert cli.main(["train"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "fusion3d: data/x: there is no table scene.json; expected a nuScenes dataroot\n"
    assert captured.out == ""


def test_unexpected_error_keeps_its_traceback(verb):
    verb(raises(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


def test_interruption_is_quiet(verb, capsys):
    verb(raises(KeyboardInterrupt()))
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "fusion3d: interrupted\n"


def test_every_verb_is_a_tool_and_says_what_it_takes():
    assert {path.stem for path in TOOLS.glob("*.py")} == set(cli.VERBS)
    done = subprocess.run(
        [sys.executable, str(TOOLS / "benchmark.py"), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "usage: fusion3d benchmark" in done.stdout


@pytest.mark.parametrize("target", [*(t for t, _ in (cli.VERBS | cli.BENCHMARKS).values()), *cli.SUITES.values()])
def test_every_verb_has_a_body(target):
    module, function = target.split(":")
    body = getattr(__import__(module, fromlist=[function]), function)
    assert callable(body)
