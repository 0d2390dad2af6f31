"""A policy's model card, and what is pushed: real requests to a Hub on this machine."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from offpref.pipeline.commands.main import main
from offpref.pipeline.publishing.card import model_card
from offpref.pipeline.publishing.facts import RunFacts
from offpref.pipeline.publishing.settings import PushSettings

OFFPREF = str(Path(sys.executable).parent / "offpref")

TOKEN = "hf_" + "x" * 34


def push(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["push-policy", *map(str, arguments)])


@pytest.fixture(scope="module")
def policy(scored_once: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps, with a checkpoint and a board."""
    import shutil

    folder = tmp_path_factory.mktemp("published")
    store = shutil.copytree(scored_once, folder / "store")
    command = ["train", store, "--pair-set", "reviews", "--model", model_dir]
    command += ["--output-dir", folder / "policy", "--pairs-per-step", "8", "--max-steps", "3"]
    command += ["--save-every", "2", "--report-to", "tensorboard", "--beta", "0.3"]
    command += ["--no-last-checkpoint"]
    done = CliRunner().invoke(main, [*map(str, command), "--eval-every", "3"])
    assert done.exit_code == 0, done.output
    return folder / "policy"


@dataclass
class Hub:
    """What a Hub on this machine was asked for."""

    address: str = ""
    refuses: bool = False
    created: list[dict[str, object]] = field(default_factory=list)
    files: dict[str, int] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A Hub that takes every file in its commit, as the real one takes small ones."""
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not body and self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
            found.tokens.add(str(self.headers.get("Authorization")))
            if found.refuses:
                self._answer({"error": "Invalid username or password."}, 401)
            elif self.path.endswith("/repos/create"):
                found.created.append(json.loads(body))
                self._answer({"url": f"{found.address}/me/policy"})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                answers = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in files
                ]
                self._answer({"files": answers})
            elif self.path.endswith("/validate-yaml"):
                self._answer({"errors": [], "warnings": []})
            elif "/commit/" in self.path:
                for line in body.splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        found.files[entry["value"]["path"]] = len(entry["value"]["content"])
                self._answer(
                    {
                        "commitUrl": f"{found.address}/me/policy/commit/1",
                        "commitOid": "1" * 40,
                        "pullRequestUrl": None,
                        "success": True,
                    }
                )
            else:
                self._answer({"error": "no"}, 404)

        def do_GET(self) -> None:
            self._answer({"id": "me/policy", "sha": "1" * 40, "siblings": []})

        def _answer(self, content: dict[str, object], code: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


def pushed(policy: Path, hub: Hub, *more: str) -> subprocess.CompletedProcess[str]:
    """Push in a process of its own: the Hub's library reads its address when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
    }
    return subprocess.run(
        [OFFPREF, "push-policy", str(policy), "me/policy", *more],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_without_push_a_card_is_written_and_what_would_be_pushed_is_said(policy: Path) -> None:
    done = push(policy, "me/policy", "--base-model", "org/base", "--dataset", "org/data")

    assert done.exit_code == 0, done.output
    files = re.findall(r"^  file     (.*)$", done.stdout, re.MULTILINE)
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    assert not [
        each for each in files if re.search("run.json|checkpoint|tensorboard|tfevents", each)
    ]
    assert done.stdout.splitlines()[-1].startswith("not pushed ")
    _, front, text = (policy / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["offpref", "preference-optimization", "dpo"], "base_model": "org/base",
        "datasets": ["org/data"],
    }  # fmt: skip
    assert str(policy.parent) not in text
    assert "| beta | 0.3 |" in text
    assert "| seed | 0 |" in text
    assert re.search(r"\| pair set \| reviews@[0-9a-f]{12} \|", text)
    assert len(re.findall(r"^\| [123] \| 0\.\d{4} \|", text, re.MULTILINE)) == 4


def test_the_card_s_command_trains_the_same_policy(
    policy: Path, tmp_path: Path, model_dir: Path
) -> None:
    push(policy, "me/policy")
    line = (policy / "README.md").read_text().strip().splitlines()[-1].strip()
    words = shlex.split(line)
    assert not {"--no-last-checkpoint", "--save-every", "--report-to"} & set(words)
    replaced = {
        "STORE": str(policy.parent / "store"),
        model_dir.name: str(model_dir),
        "policy": str(tmp_path / "again"),
    }

    done = CliRunner().invoke(main, [replaced.get(each, each) for each in words[1:]])

    assert done.exit_code == 0, done.output
    weights = [(each / "model.safetensors").read_bytes() for each in (policy, tmp_path / "again")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("more", "is_private"), [((), True), (("--public",), False)])
def test_push_sends_the_policy_and_its_card_alone(
    more: tuple[str, ...], is_private: bool, policy: Path, hub: Hub
) -> None:
    done = pushed(policy, hub, "--push", *more)

    assert done.returncode == 0, done.stderr
    assert [each.get("private", each.get("visibility") == "private") for each in hub.created] == [
        is_private
    ]
    assert set(hub.files) == {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(f"to {hub.address}/me/policy")


def test_a_hub_that_refuses_is_one_line_without_the_token(policy: Path, hub: Hub) -> None:
    hub.refuses = True

    done = pushed(policy, hub, "--push")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: me/policy was not pushed: ")
    assert TOKEN not in done.stdout + done.stderr


def test_text_of_others_stays_text(tmp_path: Path) -> None:
    digest = hashlib.md5(b"").hexdigest()
    nasty = "a|b\n# <script>`x`</script> [l](http://x)"
    facts = RunFacts(
        name=nasty, config={"loss_type": "sigmoid", "model": f"/home/me/{nasty}"}, pair_set=nasty,
        pair_set_fingerprint=digest, form=nasty, sources=[], splits={nasty: 1}, reference=None,
        versions={}, steps=[{"step": 1, "split": nasty, "loss": 1.0, "metrics": {}}],
    )  # fmt: skip

    text = model_card(facts, PushSettings(folder=tmp_path, repo="me/p", base_model="x\n---\ny"))

    assert (
        yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))["base_model"] == "x\n---\ny"
    )
    assert "<script>" not in text.rpartition("## Command")[0]
    assert "\n# <" not in text
    assert "/home/me" not in text
    assert all(
        line.startswith("    ") for line in text.rpartition("## Command\n\n")[2].splitlines()
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("{policy}", "nobody"), 2, "repo must be OWNER/NAME, got 'nobody'"),
        (("{policy}", "me/p", "--public"), 2, "public has no effect without push"),
        (("{model}", "me/p"), 1, "has no run: expected a folder that train has made"),
        (("{policy}", "me/p", "--store", "{other}"), 1, "is not in this store"),
    ],
)
def test_what_cannot_be_published_is_one_line(
    arguments: tuple[str, ...], code: int, message: str, policy: Path, model_dir: Path,
    scored_once: Path,
) -> None:  # fmt: skip
    paths = {"policy": policy, "model": model_dir, "other": scored_once}

    done = push(*(each.format(**paths) for each in arguments))

    assert done.exit_code == code
    assert message in done.stderr.splitlines()[-1]


def test_a_card_of_one_s_own_is_kept(policy: Path) -> None:
    (policy / "README.md").write_text("# Mine\n")

    refused, done = push(policy, "me/p"), push(policy, "me/p", "--overwrite")

    assert refused.exit_code == 1
    assert "is not offpref's; --overwrite replaces it" in refused.stderr
    assert done.exit_code == 0
