import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from offpref.pipeline.commands.group import StageGroup
from offpref.pipeline.commands.main import main
from offpref.pipeline.commands.start import VERBS, _group
from offpref.pipeline.small_world import write_pairs

ROOT = Path(__file__).parents[2]
DOCUMENTS = "".join(p.read_text() for p in (ROOT / "README.md", *ROOT.glob("docs/*.md")))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, num_pairs=40, seed=3)
    return path


def commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


@pytest.mark.parametrize("name", commands(main))
def test_every_command_and_option_has_help_and_is_documented(name: str) -> None:
    command = commands(main)[name]
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))
    assert f"offpref {name}" in DOCUMENTS


def test_add_then_score_then_score_again(tmp_path: Path, model_dir: Path, pairs: Path) -> None:
    store = tmp_path / "store"

    added = invoke("add", store, "--data", pairs, "--pair-set", "p", "--tokenizer", model_dir)
    scored = invoke("score", store, "--pair-set", "p", "--model", model_dir)
    again = invoke("score", store, "--data", pairs, "--pair-set", "p", "--model", model_dir)

    assert [added.exit_code, scored.exit_code, again.exit_code] == [0, 0, 0]
    assert "rows       40: 40 pairs, 0 rejected" in added.stdout
    assert ": 0 new," in again.stdout
    assert "known, nothing was read" in again.stdout  # the length is the model's in both
    assert "80 new" in scored.stdout or " new, 0 cached" in scored.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["score", "{store}", "--pair-set", "p", "--model", "{model}"], 1, "not a store"),
        (["add", "{store}", "--data", "{no}", "--pair-set", "p", "--tokenizer", "{model}"], 1,
         "found nothing there"),
        (["add", "{store}", "--data", "{data}", "--pair-set", "p", "--tokenizer", "{no}"], 1,
         "expected a folder with a tokenizer"),
        (["score", "{store}", "--data", "{data}", "--pair-set", "p", "--model", "{no}"], 1,
         "expected a folder with a model"),
        (["score", "{store}", "--pair-set", "p", "--model", "{model}", "--eval-fraction", "0.1"],
         2, "--eval-fraction has no effect without --data"),
        (["add", "{store}", "--data", "{data}", "--pair-set", "p", "--tokenizer", "{model}",
          "--eval-fraction", "2"], 2, "eval_fraction must be in"),
        (["query", "{store}", "select 1"], 1, "not a store"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_its_exit_code(
    arguments: list[str], exit_code: int, message: str, tmp_path: Path, model_dir: Path, pairs: Path
) -> None:
    paths = {"store": tmp_path / "s", "model": model_dir, "no": tmp_path / "no", "data": pairs}

    result = invoke(*(argument.format(**paths) for argument in arguments))

    assert result.exit_code == exit_code
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_config_file_gives_defaults_and_options_win(
    tmp_path: Path, model_dir: Path, pairs: Path
) -> None:
    config = tmp_path / "add.toml"
    config.write_text(f'pair-set = "from-file"\ntokenizer = "{model_dir}"\nmax-length = 20\n')

    by_file = invoke("add", tmp_path / "a", "--data", pairs, "--config", config)
    by_option = invoke(
        "add", tmp_path / "b", "--data", pairs, "--config", config, "--pair-set", "mine"
    )

    assert "pair set   from-file@" in by_file.stdout
    assert "longer than the limit" in by_file.stdout
    assert "pair set   mine@" in by_option.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning-rate = 1", "'learning-rate' is not an option of add"),
        ("a = ", "expected a TOML file"),
    ],
)
def test_config_file_that_cannot_act_is_an_error(
    content: str, message: str, tmp_path: Path, model_dir: Path, pairs: Path
) -> None:
    (tmp_path / "c.toml").write_text(content)
    result = invoke("add", tmp_path / "s", "--data", pairs, "--config", tmp_path / "c.toml")
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    "arguments", [["--help"], ["query", "{store}", "store"], ["query", "--help"]]
)
def test_help_and_queries_start_without_torch(
    arguments: list[str], tmp_path: Path, model_dir: Path, pairs: Path
) -> None:
    store = tmp_path / "store"
    invoke("add", store, "--data", pairs, "--pair-set", "p", "--tokenizer", model_dir)
    code = (
        "import sys\n"
        "from offpref.pipeline.commands.main import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, *(a.format(store=store) for a in arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


def test_nothing_opens_a_socket(tmp_path: Path, model_dir: Path, pairs: Path) -> None:
    """From data to scores to answers, in a process in which a socket is an error."""
    code = (
        "import sys, json\n"
        "def forbid(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.bind'):\n"
        "        raise RuntimeError(f'{event} {arguments}')\n"
        "sys.addaudithook(forbid)\n"
        "from offpref.pipeline.commands.main import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    main(arguments, standalone_mode=False)\n"
    )
    store = str(tmp_path / "store")
    calls = [
        ["score", store, "--data", str(pairs), "--pair-set", "p", "--model", str(model_dir)],
        ["query", store, "select count(*) from logps"],
        ["store", "ls", store],
        ["store", "verify", store],
    ]

    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_a_new_version_says_what_the_one_before_had(
    tmp_path: Path, model_dir: Path, pairs: Path
) -> None:
    store = tmp_path / "store"
    common = ("--data", pairs, "--pair-set", "p", "--tokenizer", model_dir)

    first = invoke("add", store, *common, "--eval-fraction", "0.5")
    second = invoke("add", store, *common)
    trained = invoke(
        "train", store, "--pair-set", "p", "--model", model_dir, "--output-dir", tmp_path / "out",
        "--loss-type", "sft", "--eval-every", 1,
    )  # fmt: skip

    assert "version " not in first.stdout
    assert "(eval_fraction was 0.5); p means the new one" in second.stdout
    assert trained.exit_code == 1
    assert "has no pair of split 'eval' that the loss can use; it has: 40 of 'train'" in (
        trained.output
    )


def test_store_commands(tmp_path: Path, model_dir: Path, pairs: Path) -> None:
    store = tmp_path / "store"
    invoke("score", store, "--data", pairs, "--pair-set", "p", "--model", model_dir)

    assert "sequences" in invoke("store", "ls", store).stdout
    assert invoke("store", "verify", store).exit_code == 0
    assert "shards became" in invoke("store", "compact", store).stdout
    hasty = invoke("store", "gc", store, "--grace-days", "0")
    assert hasty.exit_code == 2
    assert "force does it, unless a writer is at work" in hasty.stderr
    assert "files deleted" in invoke("store", "gc", store, "--grace-days", "0", "--force").stdout
    assert invoke("store", "verify", store).exit_code == 0
    assert ": 0 new," in invoke("score", store, "--pair-set", "p", "--model", model_dir).stdout

    shard = next(store.glob("data/logps/*/*/*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"X")
    damaged = invoke("store", "verify", store)
    assert damaged.exit_code == 1
    assert shard.name in damaged.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("query", "interrupted"),  # nothing of it is kept
        ("score", "interrupted: what was done is kept; run the same command to continue"),
        # An output folder that is not empty is refused without --resume.
        (
            "train",
            "interrupted: what was saved is kept; run the same command with --resume to continue",
        ),
        (
            "sft",
            "interrupted: what was saved is kept; run the same command with --resume to continue",
        ),
    ],
)
def test_what_is_said_of_an_interrupted_command_is_true_of_it(name: str, said: str) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    group = StageGroup(commands={name: click.Command(name, callback=interrupted)})

    done = CliRunner().invoke(group, [name])

    assert done.exit_code == 130
    assert done.stderr == f"{said}\n"


def test_every_command_but_the_demo_starts_without_the_others() -> None:
    assert {*VERBS, "demo"} == set(main.commands)
    for verb in VERBS:
        assert _group(verb).commands[verb] is main.commands[verb]
