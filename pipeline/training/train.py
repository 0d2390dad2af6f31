"""Stage two: train a policy on the pairs of a store, against stored scores of the reference.

The reference is never loaded. Measurements go to the store while the policy trains, and the output
folder ends as a model that transformers loads. If a run is killed or interrupted, it resumes from
its last checkpoint as if nothing had happened.
"""

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch

from offpref.pipeline.boards.board import BoardRun
from offpref.pipeline.boards.boards import Boards
from offpref.pipeline.models.devices import Processes, join_processes, keep_freed_memory
from offpref.pipeline.models.folders import read_run, write_run
from offpref.pipeline.models.out_of_memory import (
    LOAD_ADVICE,
    OutOfMemoryError,
    clear_memory_errors,
)
from offpref.pipeline.models.scoring_model import ScoringModel
from offpref.pipeline.models.tensor_files import tensor_errors
from offpref.pipeline.pairs.mask_names import shown_mask
from offpref.pipeline.progress import Progress
from offpref.pipeline.stopping import stopping
from offpref.stores.errors import OffprefError, OwnCodeError, StoreWriteError
from offpref.stores.files.placing import clear_write_errors, move_synced, sync_file, sync_folder
from offpref.stores.store import Store

from .attempts import begin_run, change_notes, put_away_name, resumed_run, write_begin
from .callbacks import Callback, Callbacks, load_callbacks
from .checkpoints import (
    load_checkpoint,
    newest_checkpoint,
    read_state,
    save_checkpoint,
    whole_state,
)
from .plan import TrainingPlan
from .policies import Learner, load_policy, make_optimizer, trainable, write_policy
from .run_records import RunRecords
from .step_checks import check_passes
from .summary import TrainSummary, run_summary
from .trainer import Trainer

PARTIAL = ".partial-policy"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after a checkpoint was written; its message says how to resume."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
        """What a shell shows for a process that this signal ended."""


def train(
    plan: TrainingPlan, progress: Progress | None = None, callbacks: Sequence[Callback] = ()
) -> TrainSummary:
    """Run a plan to its end.

    Args:
        plan: The run.
        progress: Is shown what happens.
        callbacks: See every step, beside those that the settings name.

    Raises:
        TrainingError: If a loss is not finite, the policy is not what the store says, or a run
            cannot be resumed because its data or settings have changed.
        ModelError: If the policy cannot be loaded.
        StoreError: If the store or the output folder cannot be written.
        Interrupted: On Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    progress = progress or Progress()
    processes = join_processes(plan.settings.device)
    if processes.device.type == "cpu":
        keep_freed_memory()
    progress = progress if processes.is_first else Progress()
    run = begin_run(plan, processes)
    if run["is_finished"]:
        num_done = int(run.get("num_steps", plan.num_steps))
        store = Store.open(plan.store_path)
        if processes.is_first and (gone := put_away_name(store, run)):
            progress.note(f"note: run {gone} is put away: no question shows it")
        return run_summary(plan, run, processes, None, num_resumed=num_done)
    plan = replace(
        plan,
        num_warmup_steps=int(run["num_warmup_steps"]),
        earlier_schedules=tuple(run.get("earlier_schedules", ())),
    )
    with clear_memory_errors(LOAD_ADVICE):
        policy = load_policy(plan.settings, processes)
    check_passes(plan, policy, processes)
    _say(plan, policy, progress)
    write_begin(plan, run, processes)  # a policy that cannot be loaded leaves the folder as it is
    optimizer = make_optimizer(policy, plan.settings)
    learner = Learner(policy=policy, optimizer=optimizer, processes=processes)
    num_done = 0
    checkpoint = newest_checkpoint(plan.settings.output_dir) if plan.settings.resume else None
    if checkpoint is not None:
        num_done = int(read_state(checkpoint)["step"])
        load_checkpoint(checkpoint, learner)
    with _recording(plan, run, policy, num_done, processes, progress) as records:
        trainer = Trainer(plan, learner, records, progress, _called(plan, callbacks))
        if checkpoint is not None:
            trainer.tie_tolerance = read_state(checkpoint).get("tie_tolerance")
        run = _run_to_end(plan, run, learner, records, trainer, num_done)
    return run_summary(plan, run, processes, trainer, num_resumed=num_done)


def _run_to_end(
    plan: TrainingPlan,
    run: dict[str, Any],
    learner: Learner,
    records: RunRecords | None,
    trainer: Trainer,
    num_done: int,
) -> dict[str, Any]:
    """Train the steps that are left, write the policy, and return what ``run.json`` says then."""
    save, processes = _saver(plan, run, learner, records, trainer), learner.processes
    with stopping(trainer.interrupt) as asked:
        done = _run(trainer, records, num_done, save, plan)
        if trainer.is_interrupted:
            raise Interrupted(
                f"interrupted: step {done} of {plan.num_steps} is saved in "
                f"{plan.settings.output_dir}; --resume continues",
                asked.number or signal.SIGINT,
            )
        with _recorded(records, lambda: done):  # a first signal waits until all is written
            _write_result(learner.policy, plan, processes, lambda: save(done))
        if records is not None:
            records.add_event("finished", done)
        run = _ended(plan, run, trainer, done)
        if processes.is_first:
            write_run(plan.settings.output_dir, run)
    return run


def _called(plan: TrainingPlan, callbacks: Sequence[Callback]) -> Callbacks:
    """Return the callbacks of a run: those that its settings name, and those that are given."""
    functions = [*load_callbacks(plan.settings.callback), *callbacks]
    return Callbacks(functions, run=plan.name, num_steps=plan.num_steps)


def _ended(
    plan: TrainingPlan, run: dict[str, Any], trainer: Trainer, num_done: int
) -> dict[str, Any]:
    """Return what ``run.json`` says of a run that has ended."""
    stopped = {"num_steps": num_done} if trainer.is_stopped else {}
    return {**run, "is_finished": True, "store": str(plan.store_path.resolve()), **stopped}


@contextmanager
def _recording(
    plan: TrainingPlan,
    run: dict[str, Any],
    policy: ScoringModel,
    num_done: int,
    processes: Processes,
    progress: Progress,
) -> Iterator[RunRecords | None]:
    """Give the first rank its records, and end their thread whatever happens."""
    if not processes.is_first:
        yield None
        return
    records = _open_records(plan, run, policy, num_done, progress)
    try:
        yield records
    finally:
        records.close()


def _saver(
    plan: TrainingPlan,
    run: dict[str, Any],
    learner: Learner,
    records: RunRecords | None,
    trainer: Trainer,
) -> Callable[[int], None]:
    """Return what writes a checkpoint of a step, once all before it is in the store."""

    def save(step: int) -> None:
        if records is not None:
            records.flush()
        state = {"run_id": run["run_id"], "attempt": run["attempt"], "step": step}
        save_checkpoint(
            plan.settings.output_dir,
            learner,
            {**state, "tie_tolerance": trainer.tie_tolerance},
            keep=plan.settings.keep,
        )
        if records is not None:
            records.add_event("saved", step)

    return save


def _run(
    trainer: Trainer,
    records: RunRecords | None,
    num_done: int,
    save: Callable[[int], None],
    plan: TrainingPlan,
) -> int:
    """Run the steps and record how the run ended; if memory runs out, keep the earlier steps."""
    if records is not None:
        records.add_event("started", num_done)
    with _recorded(records, lambda: trainer.history[-1][0] if trainer.history else num_done):
        try:
            done = trainer.run(num_done, save)
        except (OutOfMemoryError, OwnCodeError) as error:
            raise type(error)(f"{error}; {_kept(trainer, save, plan)}") from error
    if trainer.is_interrupted and records is not None:
        records.add_event("interrupted", done)
    return done


@contextmanager
def _recorded(records: RunRecords | None, step: Callable[[], int]) -> Iterator[None]:
    """Let the store say how a run ended that ends with an error."""
    try:
        yield
    except BaseException as error:  # raised again
        event = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        if records is not None:
            with suppress(OffprefError):  # the store itself may be what failed
                records.add_event(event, step(), str(error) or type(error).__name__)
        raise


def _kept(trainer: Trainer, save: Callable[[int], None], plan: TrainingPlan) -> str:
    """Save the steps before one that failed, if they are still whole; return where it stands."""
    step = trainer.put_back()
    if step:
        with suppress(OffprefError, MemoryError, RuntimeError):
            save(step)
    return _state_of(plan)


def _state_of(plan: TrainingPlan) -> str:
    """Return what --resume would do, in words."""
    checkpoint = newest_checkpoint(plan.settings.output_dir)
    if checkpoint is None:
        return "no step is saved, --resume starts again"
    return f"step {int(read_state(checkpoint)['step'])} is saved, --resume continues from there"


def _say(plan: TrainingPlan, policy: ScoringModel, progress: Progress) -> None:
    """Print notes for the user before the first step."""
    for line in change_notes(plan):
        progress.note(line)
    if any(parameter.dtype == torch.bfloat16 for parameter in trainable(policy).values()):
        what = "weights" if plan.settings.lora_r is None else "the adapter's weights"
        progress.note(
            f"note: --precision bf16 keeps {what} and the optimizer's state in bf16: an update "
            "smaller than half the last bit of a weight is lost; --precision bf16-autocast, in "
            "score and train, keeps them in float32"
        )
    if policy.report is not None and policy.report.message:
        progress.note(policy.report.message)
    if plan.pairs.num_left_out:
        what, why = "pairs", "have no chosen completion"
        if plan.pairs.members is not None:
            what, why = "lists", "score all of their completions alike"
        progress.note(
            f"{plan.pairs.num_left_out:,} {what} of split {plan.pairs.split} are left out: they "
            f"{why}"
        )
    for pairs in (plan.pairs, *plan.eval_pairs):
        if pairs.num_uncounted:
            progress.note(
                f"{pairs.num_uncounted:,} pairs of split {pairs.split} are left out: no token of "
                f"them counts under mask {shown_mask(plan.settings.mask)}"
            )


def is_trained(plan: TrainingPlan, *, instead: str) -> bool:
    """Return whether the plan's output folder holds its finished run.

    Args:
        plan: The plan.
        instead: What the message says to do if it holds another one.

    Raises:
        TrainingError: If it holds a run that depends on something else, or has more steps.
    """
    if read_run(plan.settings.output_dir) is None:
        return False
    return bool(resumed_run(plan, instead=instead)["is_finished"])


def _open_boards(
    plan: TrainingPlan, run: dict[str, Any], num_done: int, progress: Progress
) -> Boards | None:
    """Return where the run reports to besides the store, if anywhere."""
    if not plan.settings.report_to:
        return None
    shown = BoardRun(
        run_id=run["run_id"],
        name=plan.name,
        folder=plan.settings.output_dir,
        config={**plan.settings.described(), **plan.loss.described()},
        first_step=num_done + 1 if num_done else None,
    )
    return Boards(plan.settings.report_to, shown, progress.note)


def _open_records(
    plan: TrainingPlan,
    run: dict[str, Any],
    policy: ScoringModel,
    num_done: int,
    progress: Progress,
) -> RunRecords:
    import transformers

    name = torch.cuda.get_device_name() if policy.device.type == "cuda" else "cpu"
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": name,
        "num_threads": torch.get_num_threads(),
        "attention": policy.attention,
        "route": policy.route,
        "kernels": policy.kernel_form,
    }
    records = RunRecords(
        plan.store_path,
        bytes.fromhex(run["run_id"]),
        int(run["attempt"]),
        provenance={"run": plan.name, **versions},
        board=_open_boards(plan, run, num_done, progress),
    )
    records.add_run(
        {
            "name": plan.name,
            "config_fingerprint": plan.config_fingerprint,
            "config": json.dumps(
                {
                    **plan.settings.described(),
                    **plan.loss.described(),
                    **(plan.kl.described() if plan.kl else {}),
                    **plan.described_schedules,
                    "dropout": 0.0,
                }
            ),
            "pair_set": plan.pair_set.name,
            "pair_set_fingerprint": plan.pair_set.fingerprint,
            "reference": plan.reference.fingerprint if plan.reference else None,
            "policy": plan.digests["policy"],
            "versions": json.dumps(versions),
        }
    )
    return records


def _write_result(
    policy: ScoringModel, plan: TrainingPlan, processes: Processes, save: Callable[[], None]
) -> None:
    """Write the trained policy into the output folder: weights first, what makes it a model last.

    A kill in between leaves a folder that nobody takes for a model, and the checkpoint to resume.
    Where the file system refuses, the last step is saved if it takes that.
    """
    weights = whole_state(policy) if processes.mesh is not None else None
    if processes.is_first:
        output = plan.settings.output_dir
        try:
            with clear_write_errors(output), tensor_errors():
                _place_policy(policy, plan, weights)
        except StoreWriteError as error:
            shutil.rmtree(output / PARTIAL, ignore_errors=True)
            if processes.mesh is None:
                with suppress(OffprefError):
                    save()
            raise StoreWriteError(f"{error}; {_state_of(plan)}") from error
    processes.wait()


def _place_policy(policy: ScoringModel, plan: TrainingPlan, weights: dict[str, Any] | None) -> None:
    """Write the policy beside, and move its files into the output folder one after the other."""
    output = plan.settings.output_dir
    partial = output / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write_policy(policy, plan.settings, partial, weights)
    files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
    for path in files:  # a run that trains on has a policy there already
        if path.name.endswith("config.json"):
            (output / path.relative_to(partial)).unlink(missing_ok=True)
    for path in sorted(files, key=lambda path: path.name.endswith("config.json")):
        sync_file(path)
        move_synced(path, output / path.relative_to(partial))
    shutil.rmtree(partial)
    sync_folder(output)
