import numpy as np
import pytest

from offpref.pipeline.scores.workers import Worker, key_order, leading_numbers, turned

KEYS = [bytes([first]) + bytes(15) for first in (200, 10, 120, 60)]


def test_sequences_lie_by_prompt_then_by_key() -> None:
    prompts = leading_numbers([KEYS[0], KEYS[1], KEYS[0], KEYS[1]])
    assert key_order(leading_numbers(KEYS), leading_numbers(KEYS)).tolist() == [1, 3, 2, 0]
    assert key_order(prompts, leading_numbers(KEYS)).tolist() == [1, 3, 2, 0]


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0.0, "abcd"), (0.25, "bcda"), (0.99, "dabc")],
)
def test_every_worker_goes_around_once_from_its_start(start: float, expected: str) -> None:
    assert turned("abcd", start) == list(expected)
    assert turned("", start) == []


def test_ranks_start_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert Worker.from_environment(is_sharded=False).start == 0.75
    monkeypatch.delenv("WORLD_SIZE")
    assert len({Worker.from_environment(is_sharded=False).start for _ in range(9)}) == 9


def test_ranks_of_a_sharded_model_run_equally_often_and_keep_each_batch_once() -> None:
    batches = [np.array([i]) for i in range(5)]
    workers = [Worker(rank=rank, world_size=2, is_sharded=True) for rank in range(2)]

    shares = [worker.share(batches) for worker in workers]

    assert [len(share) for share in shares] == [3, 3]
    kept = [int(batch[0]) for share in shares for batch, is_kept in share if is_kept]
    assert sorted(kept) == [0, 1, 2, 3, 4]
