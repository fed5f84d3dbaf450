"""The command line as a shell sees it: exit codes, streams, precedence, start-up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from capax.cli import main
from capax.cli.config_file import default_map
from capax.cli.console import Console
from capax.errors import CapacityError, ConfigError

SOURCES = Path(__file__).parents[2] / "src"


def environment(tmp_path: Path, **extra: str) -> dict[str, str]:
    """An environment of nobody in particular: empty caches and configuration."""
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(SOURCES),
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        **extra,
    }


def capax(
    tmp_path: Path, *arguments: str, stdin: str = "", **extra: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "capax", *arguments],
        env=environment(tmp_path, **extra),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("CAPAX_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def probe_command(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Replace 'capax list' by a command that records its flags; returns the records."""
    seen: list[dict[str, object]] = []

    @click.command("list")
    @click.option("-t", "--threads", type=int, default=7)
    @click.option("--ctx-size", type=int, default=0)
    @click.option("--fail", "failure")
    def command(**flags: object) -> None:
        seen.append(flags)
        failures: dict[object, BaseException] = {
            "config": ConfigError("threads is 0; at least 1 is needed"),
            "capacity": CapacityError("the model does not fit"),
            "bug": TypeError("len() of None"),
            "os": FileNotFoundError(2, "No such file or directory", "/nowhere"),
            "memory": MemoryError(),
            "interrupt": KeyboardInterrupt(),
        }
        if flags["failure"] in failures:
            raise failures[flags["failure"]]

    import capax.cli.list_models

    monkeypatch.setattr(capax.cli.list_models, "command", command)
    return seen


def write_config(home: Path, text: str) -> None:
    path = home / "config/capax/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        ("none", 0, ""),
        ("config", 1, "capax: threads is 0; at least 1 is needed\n"),
        ("capacity", 3, "capax: the model does not fit\n"),
        ("os", 1, "capax: /nowhere: No such file or directory\n"),
        ("memory", 1, "capax: the system has no memory left"),
        ("bug", 1, "capax: internal error (TypeError: len() of None); run again with --debug"),
        ("interrupt", 130, ""),
    ],
)
def test_every_failure_has_its_exit_code_and_no_traceback(
    home: Path,
    probe_command: list[dict[str, object]],
    capsys: pytest.CaptureFixture[str],
    failure: str,
    code: int,
    message: str,
) -> None:
    assert main.run(["list", "--fail", failure]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [["--debug", "list"], ["list", "--debug"]])
def test_debug_shows_where_an_error_came_from(
    home: Path, probe_command: list[dict[str, object]], arguments: list[str]
) -> None:
    with pytest.raises(TypeError):
        main.run([*arguments, "--fail", "bug"])


def test_flags_win_over_environment_over_file_over_default(
    home: Path, probe_command: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main.run(["list"]) == 0
    write_config(home, "threads = 3\n[list]\nctx_size = 9\n")
    assert main.run(["list"]) == 0
    monkeypatch.setenv("CAPAX_THREADS", "4")
    assert main.run(["list"]) == 0
    assert main.run(["list", "-t", "5"]) == 0
    assert [flags["threads"] for flags in probe_command] == [7, 3, 4, 5]
    assert [flags["ctx_size"] for flags in probe_command] == [0, 9, 9, 9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("thredas = 3", "unknown key 'thredas'; did you mean 'threads'?"),
        ("[list]\nctx = 1", "unknown key 'list.ctx'"),
        ("[lits]\nthreads = 1", r"unknown key '\[lits\]'; did you mean 'list'?"),
        ("threads = ", "is not valid TOML"),
        ("threads = \xff", "is not valid TOML"),
    ],
)
def test_a_wrong_configuration_file_is_an_error(
    home: Path,
    probe_command: list[dict[str, object]],
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
) -> None:
    path = home / "config/capax/config.toml"
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    assert main.run(["list"]) == 1
    error = capsys.readouterr().err
    assert message.replace("\\", "") in error
    assert str(path) in error
    assert probe_command == []


def test_a_value_of_the_wrong_type_in_the_file_is_misuse(
    home: Path, probe_command: list[dict[str, object]]
) -> None:
    write_config(home, 'threads = "many"\n')
    assert main.run(["list"]) == 2


def test_a_wrong_value_in_the_environment_is_misuse(
    home: Path, probe_command: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPAX_THREADS", "many")
    assert main.run(["list"]) == 2


@pytest.mark.parametrize("arguments", [["nope"], ["list", "--nope"], ["plan"], ["--nope"]])
def test_misuse_exits_with_2(home: Path, arguments: list[str]) -> None:
    assert main.run(arguments) == 2


def test_a_misspelt_command_gets_a_suggestion(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.run(["docter"])
    assert "did you mean 'doctor'?" in capsys.readouterr().err


def test_every_command_exists_and_says_what_it_does(home: Path) -> None:
    context = click.Context(main.cli, obj=Console())
    for name in main.COMMANDS:
        command = main.cli.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str()
        assert all(o.help for o in command.params if isinstance(o, click.Option)), name


def test_every_flag_has_a_variable_and_no_two_flags_of_a_command_share_one(home: Path) -> None:
    context = click.Context(main.cli, obj=Console())
    for name in main.COMMANDS:
        command = main.cli.get_command(context, name)
        assert command is not None
        options = [p for p in command.params if isinstance(p, click.Option) and not p.is_eager]
        options = [o for o in options if o.name != "model_flag"]  # CAPAX_MODEL is MODEL's
        # A flag may have a second variable, one that other programs read as well.
        variables = [o.envvar if isinstance(o.envvar, str) else o.envvar[0] for o in options]
        assert all(v.startswith("CAPAX_") for v in variables)
        assert len(set(variables)) == len(variables), name


def test_help_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from capax.cli.main import run; code = run(['--help'])\n"
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'rich', 'msgspec', 'capax._native'}\n"
        "sys.stderr.write(repr(sorted(heavy & set(sys.modules)))); sys.exit(code)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 0
    assert finished.stderr == "[]"
    assert "Run, scale and measure" in finished.stdout


def test_the_version_is_on_stdout(tmp_path: Path) -> None:
    finished = capax(tmp_path, "--version")
    assert finished.returncode == 0
    assert finished.stdout.startswith("capax ")


def test_a_reader_that_goes_away_is_no_error_message(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    finished = subprocess.run(
        [sys.executable, "-m", "capax", "completion", "bash"],
        env=environment(tmp_path),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert finished.stderr == ""
    assert finished.returncode == 141


def test_a_model_that_is_not_here_exits_with_1_and_names_the_next_step(tmp_path: Path) -> None:
    finished = capax(tmp_path, "plan", "smollm2-135m")
    assert finished.returncode == 1
    assert finished.stdout == ""
    assert "capax pull smollm2-135m" in finished.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(tmp_path: Path, shell: str) -> None:
    finished = capax(tmp_path, "completion", shell)
    assert finished.returncode == 0
    assert "_CAPAX_COMPLETE" in finished.stdout


def test_completion_offers_commands(tmp_path: Path) -> None:
    finished = capax(
        tmp_path, _CAPAX_COMPLETE="bash_complete", COMP_WORDS="capax do", COMP_CWORD="1"
    )
    assert "doctor" in finished.stdout


def test_doctor_reports_cpu_memory_disk_and_misspelt_variables(tmp_path: Path) -> None:
    finished = capax(tmp_path, "doctor", "--json", CAPAX_THREDS="2")
    document = json.loads(finished.stdout)
    findings = {f["name"]: f for f in document["findings"]}
    assert {"cpu", "isa", "memory", "disk", "models", "versions"} <= findings.keys()
    assert "cores usable" in findings["cpu"]["text"]
    assert "CAPAX_THREDS" in findings["environ"]["text"]
    assert finished.returncode == (0 if document["ok"] else 1)


def test_doctor_finds_what_is_broken(tmp_path: Path) -> None:
    finished = capax(tmp_path, "doctor", CAPAX_ISA="abacus")
    assert finished.returncode == 1
    assert "CAPAX_ISA is 'abacus'" in finished.stdout


class FakeStream:
    """A stream that says whether it is a terminal."""

    def __init__(self, is_terminal: bool) -> None:
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    ("environ", "is_terminal", "shows"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"CLICOLOR_FORCE": "1"}, False, True),
        ({"CLICOLOR_FORCE": "0"}, False, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
    ],
)
def test_colour_follows_the_usual_variables(
    environ: dict[str, str], is_terminal: bool, shows: bool
) -> None:
    console = Console(environ=environ)
    assert console.shows_color(FakeStream(is_terminal)) is shows  # type: ignore[arg-type]
    assert not Console(color=False, environ=environ).shows_color(FakeStream(True))  # type: ignore[arg-type]


def test_a_key_reaches_every_command_that_has_the_flag() -> None:
    commands = click.Group(
        commands={
            "a": click.Command("a", params=[click.Option(["-t", "--threads"])]),
            "b": click.Command("b", params=[click.Option(["--threads", "n"])]),
            "c": click.Command("c", params=[click.Option(["--other"])]),
            "g": click.Group(
                commands={"d": click.Command("d", params=[click.Option(["--threads"])])}
            ),
        }
    )
    config = {"threads": 2, "c": {"other": "x"}, "g": {"d": {"threads": 3}}}
    assert default_map(config, commands, Path("config.toml")) == {
        "a": {"threads": 2},
        "b": {"n": 2},
        "c": {"other": "x"},
        "g": {"d": {"threads": 3}},
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"g": {"threads": 1}}, r"unknown key '\[g\]'"),
        ({"g": {"e": {}}}, r"unknown key '\[g.e\]'"),
        ({"g": {"d": {"x": 1}}}, r"unknown key 'g.d.x'"),
    ],
)
def test_a_table_that_is_no_command_is_refused(config: dict[str, object], message: str) -> None:
    group = click.Group(
        commands={
            "g": click.Group(commands={"d": click.Command("d", params=[click.Option(["--n"])])})
        }
    )
    with pytest.raises(ConfigError, match=message):
        default_map(config, group, Path("config.toml"))


def test_closed_streams_are_no_internal_error(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m capax completion bash <&- >&-"
    finished = subprocess.run(
        ["sh", "-c", command],
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert finished.stderr == ""
    assert finished.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "model", "prompt"),
    [
        (["run", "one", "Hi"], "one", "Hi"),
        (["run", "-m", "one", "Hi"], "one", "Hi"),
        (["run", "Hi", "--model", "one"], "one", "Hi"),
        (["run", "--model=one", "-n", "3", "--", "-m"], "one", "-m"),
        (["run", "one", "--", "-m two"], "one", "-m two"),
    ],
)
def test_the_model_may_be_a_flag(home: Path, arguments: list[str], model: str, prompt: str) -> None:
    context = click.Context(main.cli)
    command = main.cli.get_command(context, "run")
    assert command is not None
    below = command.make_context("run", arguments[1:], parent=context)
    assert (below.params["model"], below.params["prompt"]) == (model, prompt)


@pytest.mark.parametrize("arguments", [["plan", "-m", "--json"], ["plan", "-m", "a", "b"]])
def test_a_model_flag_that_makes_no_sense_is_misuse(home: Path, arguments: list[str]) -> None:
    assert main.run(arguments) == 2
