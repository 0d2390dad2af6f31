import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.scores.score import score
from offpref.pipeline.scores.settings import ScoreSettings
from offpref.pipeline.small_world import write_model, write_pairs, write_tokenizer
from offpref.pipeline.training.settings import TrainSettings
from offpref.stores.store import Store

SHARED = Path(__file__).parent.parent.parent / "shared"

CHAT_TEMPLATE = (
    "{% for message in messages %}<s> {{ message['role'] }} {{ message['content'] }} </s>"
    "{% endfor %}{% if add_generation_prompt %}<s> assistant {% endif %}"
)


def copy_of(store: Path, path: Path) -> Path:
    """Copy a store without heartbeats: in the copy nobody renews them."""
    return Path(shutil.copytree(store, path, ignore=shutil.ignore_patterns("*.alive")))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep shortcuts of tests out of the user's cache folder, processes that they start too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFFPREF_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama of 64 positions with the small world's tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, vocab_size=write_tokenizer(folder), seed=0)
    return folder


@pytest.fixture(scope="session")
def chat_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a chat template whose generation prompt is ``<s> assistant``."""
    folder = tmp_path_factory.mktemp("chat")
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.create(tmp_path / "store")


@pytest.fixture(scope="session")
def scored_once(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with some eighty pairs, a fifth of them held out, scored by ``model_dir``."""
    folder = tmp_path_factory.mktemp("scored")
    write_pairs(folder / "pairs.jsonl", num_pairs=80, seed=3)
    data = AddSettings(
        data=(str(folder / "pairs.jsonl"),),
        pair_set="reviews",
        tokenizer=model_dir,
        max_length=64,
        eval_fraction=0.2,
    )
    score(Store.create(folder / "store"), ScoreSettings(model=model_dir, data=data))
    return folder / "store"


@pytest.fixture
def scored(scored_once: Path, tmp_path: Path) -> Store:
    """A copy of that store."""
    return Store.open(copy_of(scored_once, tmp_path / "scored"))


@pytest.fixture(scope="session")
def tiered_once(
    scored_once: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same store with every tier: all log-probs, the top 6, hidden states."""
    folder = Path(shutil.copytree(scored_once, tmp_path_factory.mktemp("tiered") / "store"))
    asked = ScoreSettings(model=model_dir, pair_set="reviews", tier=("topk", "hidden"), top_k=6)
    score(Store.open(folder), asked)
    return folder


@pytest.fixture
def tiered(tiered_once: Path, tmp_path: Path) -> Store:
    """A copy of that store."""
    return Store.open(copy_of(tiered_once, tmp_path / "tiered"))


@pytest.fixture
def train_settings(model_dir: Path, tmp_path: Path) -> Callable[..., TrainSettings]:
    """Make the settings of a short run on the scored store; any of them may be given."""

    def make(**given: object) -> TrainSettings:
        defaults: dict[str, object] = {
            "pair_set": "reviews",
            "model": model_dir,
            "output_dir": tmp_path / "out",
            "pairs_per_step": 8,
            "learning_rate": 1e-3,
        }
        return TrainSettings(**(defaults | given))  # type: ignore[arg-type] # spelled in tests

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Write rows as JSON lines and return the file."""

    def write(rows: Sequence[object], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and models beside the project; the test is skipped where there are none."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared data beside the project")
    return SHARED


def _interprets_triton() -> bool:
    triton = pytest.importorskip("triton", reason="Triton exists for Linux only")
    return bool(triton.knobs.runtime.interpret)


def _cuda_or_skip() -> str:
    import torch

    if _interprets_triton() or not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and no TRITON_INTERPRET")
    return "cuda"


@pytest.fixture
def interpreter() -> None:
    """Triton's interpreter; the test is skipped where there is none."""
    if not _interprets_triton():
        pytest.skip("needs TRITON_INTERPRET=1 before triton is imported, as `make test` sets it")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where a Triton kernel runs: on a CPU in the interpreter."""
    if request.param == "cuda":
        return _cuda_or_skip()
    request.getfixturevalue("interpreter")
    return "cpu"


@pytest.fixture
def gpu() -> str:
    """A CUDA device; the test is skipped where there is none."""
    return _cuda_or_skip()


@pytest.fixture(params=["torch", "triton"])
def form(request: pytest.FixtureRequest) -> str:
    """Both forms of the kernels, Triton's in the interpreter."""
    if request.param == "triton":
        request.getfixturevalue("interpreter")
    return str(request.param)
