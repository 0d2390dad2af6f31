"""An open store and its verbs: each a thin call of what the command of its name calls.

Names of keywords are those of the command's options, and so are their defaults, checks and
messages. Wrong settings raise ValueError; what is wrong with files, models or data raises an
`OffprefError`.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offpref.pipeline.adding.settings import AddSettings
from offpref.pipeline.displays import Nothing, display
from offpref.pipeline.progress import RowBar, StepBar, TokenBar
from offpref.stores.closing import Closing
from offpref.stores.query.answer_table import AnswerTable
from offpref.stores.store import Store

from .given import settings_of, training_settings, values_of
from .keeping import StoreKeeping
from .lines import (
    evaluation_lines,
    export_line,
    pair_set_lines,
    report_line,
    reward_lines,
    reward_model_lines,
    score_lines,
    training_lines,
    version_lines,
)
from .results import (
    Exported,
    ObjectiveRewards,
    Page,
    Pairs,
    PolicyMeasures,
    RewardModel,
    Run,
    Scores,
    SweepRuns,
)
from .store_settings import PageSettings

if TYPE_CHECKING:
    from torch import nn

    from offpref.pipeline.training.callbacks import Callback
    from offpref.pipeline.training.measurements import StepMeasurement
    from offpref.pipeline.training.settings import TrainSettings
    from offpref.pipeline.training.summary import TrainSummary
    from offpref.stores.query.catalog import Relation
    from offpref.stores.query.notebook import Notebook

    from .batches import Batches

Folder = str | PathLike[str]
PairSetName = str | Pairs


class OpenStore(StoreKeeping, Closing):
    """A store, to add to, score, train from and ask."""

    def __init__(self, store: Store, *, shows_progress: bool = True) -> None:
        """Take the store; see `offpref.open`."""
        self._store = store
        self._shows_progress = shows_progress
        self._notebook: Notebook | None = None

    def close(self) -> None:
        """Close what questions have opened: relations end with it."""
        if self._notebook is not None:
            self._notebook.close()
            self._notebook = None

    @property
    def path(self) -> Path:
        """Folder of the store."""
        return self._store.path

    def __repr__(self) -> str:
        return "\n".join([f"offpref store {self.path}", *self._contents()])

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(repr(self))}</pre>"

    def add(self, data: Any, *, pair_set: str, tokenizer: Folder, **settings: Any) -> Pairs:
        """Put pairs, prompts with completions, or unpaired labels into the store.

        Args:
            data: File, folder or address; or several.
            pair_set: Name for the pairs.
            tokenizer: Folder with the tokenizer; a model's folder will do.
            settings: Options of `offpref add`.
        """
        from offpref.pipeline.adding.add import add_pairs, check_sources, fitted, plan_add

        given = {**settings, "data": data, "pair_set": pair_set, "tokenizer": tokenizer}
        asked = fitted(settings_of(AddSettings, given))
        check_sources(asked)
        store = self._fresh()
        planned = plan_add(store, asked)
        with self._bar(RowBar("add")) as bar:
            found, is_new = add_pairs(store, planned, bar.advance)
        lines = list(pair_set_lines(store, found, is_new=is_new))
        return Pairs.of(found, lines, is_new=is_new)

    def select(self, pair_set: PairSetName, *, from_lists: str, **settings: Any) -> Pairs:
        """Make a pair set of the ranked lists of another one, without scoring.

        Args:
            pair_set: Pairs whose data were lists.
            from_lists: Which two completions of a list make a pair: ``best-worst``, ``adjacent``,
                ``all`` or ``random``.
            settings: Options of `offpref select`.
        """
        from offpref.pipeline.adding.select import select_pairs
        from offpref.pipeline.adding.settings import SelectSettings

        given = {**settings, "pair_set": pair_set, "from_lists": from_lists}
        store = self._fresh()
        found, is_new = select_pairs(store, settings_of(SelectSettings, given))
        return Pairs.of(found, list(pair_set_lines(store, found, is_new=is_new)), is_new=is_new)

    def score(self, pair_set: PairSetName, *, model: Folder, **settings: Any) -> Scores:
        """Write the reference's scores of every sequence that lacks them (stage one).

        Args:
            pair_set: The pairs.
            model: Folder of the reference.
            settings: Options of `offpref score`.
        """
        from offpref.pipeline.scores.score import score
        from offpref.pipeline.scores.settings import ScoreSettings

        asked = settings_of(ScoreSettings, {**settings, "pair_set": pair_set, "model": model})
        with self._bar(TokenBar("score")) as bar:
            done = score(self._fresh(), asked, bar)
        return Scores(
            lines=tuple(score_lines(done)), pairs=str(done.pair_set), reference=done.scorer,
            num_sequences=done.num_sequences, num_new=done.num_new,
        )  # fmt: skip

    def reward(
        self, pair_set: PairSetName, *, objective: str, kind: str, **settings: Any
    ) -> ObjectiveRewards:
        """Write margin rewards of one objective, for completions that have none (stage one).

        Args:
            pair_set: The pairs.
            objective: Name of the objective.
            kind: Where the rewards come from, as ``offpref reward --from`` names it.
            settings: Other options of `offpref reward`.
        """
        from offpref.pipeline.rewards.reward import plan_reward, run_reward
        from offpref.pipeline.rewards.settings import RewardSettings

        given = {**settings, "pair_set": pair_set, "objective": objective, "kind": kind}
        plan = plan_reward(self._fresh(), settings_of(RewardSettings, given))
        with self._bar(TokenBar("reward")) as bar:
            done = run_reward(plan, bar)
        return ObjectiveRewards(
            lines=tuple(reward_lines(done)), objective=done.objective, source=done.source,
            num_new=done.num_new, mean=done.mean, std=done.std, agreement=done.margin_agreement,
        )  # fmt: skip

    def train(
        self,
        pair_set: PairSetName,
        *,
        model: Folder,
        output_dir: Folder,
        callbacks: "Sequence[Callback]" = (),
        **settings: Any,
    ) -> Run:
        """Train a policy on pairs against the reference's stored scores (stage two).

        Args:
            pair_set: The pairs.
            model: Folder of the policy to start from.
            output_dir: Folder for the trained policy.
            callbacks: Functions that get each step as an `offpref.StepRecord`; one that returns
                ``"stop"`` ends the run after that step.
            settings: Options of `offpref train`; ``loss_type`` may also be a function, see
                `offpref.loss`.
        """
        given = {**settings, "pair_set": pair_set, "model": model, "output_dir": output_dir}
        return self._train("train", training_settings(given), callbacks)

    def sft(
        self, pair_set: PairSetName, *, model: Folder, output_dir: Folder, **settings: Any
    ) -> Run:
        """Fine-tune on demonstrations, or on the chosen completions of pairs.

        Args:
            pair_set: The pairs.
            model: Folder of the model to start from.
            output_dir: Folder for the tuned model.
            settings: Options of `offpref sft`.
        """
        from offpref.pipeline.training.settings import NOT_OF_SFT

        given = {**settings, "pair_set": pair_set, "model": model, "output_dir": output_dir}
        asked = training_settings(given, without=NOT_OF_SFT, loss_type=("sft",))
        return self._train("sft", asked)

    def train_reward(
        self, pair_set: PairSetName, *, model: Folder, output_dir: Folder, **settings: Any
    ) -> RewardModel:
        """Train a Bradley-Terry reward model on pairs.

        Args:
            pair_set: The pairs.
            model: Folder to start from: a language model or a classifier.
            output_dir: Folder for the reward model.
            settings: Options of `offpref train-reward`.
        """
        from offpref.pipeline.rewards.settings import RewardTrainSettings
        from offpref.pipeline.rewards.train_model import train_reward

        given = {**settings, "pair_set": pair_set, "model": model, "output_dir": output_dir}
        asked = settings_of(RewardTrainSettings, given)
        with self._bar(StepBar("train-reward")) as bar:
            done = train_reward(self._fresh(), asked, bar)
        return RewardModel(
            lines=tuple(reward_model_lines(done)), output_dir=done.output_dir,
            accuracies=done.accuracies,
        )  # fmt: skip

    def sweep(self, config: Folder, **settings: Any) -> SweepRuns:
        """Train every run that a TOML file names and that is not trained yet.

        Args:
            config: The file.
            settings: ``jobs``: runs at a time, 1 by default.
        """
        from offpref.pipeline.sweeps.points import SweepSettings, read_points

        asked = settings_of(SweepSettings, {**settings, "config": config})
        points = read_points(asked.config)
        from offpref.pipeline.sweeps.sweep import plan_sweep, run_sweep  # bring torch

        said: list[str] = []
        shown = display() if self._shows_progress else Nothing()
        plan = plan_sweep(self.path, points)
        done = run_sweep(plan, jobs=asked.jobs, say=said.append, shown=shown)
        return SweepRuns(
            lines=tuple(said), trained=tuple(done.trained), skipped=tuple(done.skipped),
            failed=done.failed,
        )  # fmt: skip

    def evaluate(self, pair_set: PairSetName, *, model: Folder, **settings: Any) -> PolicyMeasures:
        """Sample from a policy; measure rewards, KL to the reference, entropy and diversity.

        Args:
            pair_set: Whose prompts.
            model: Folder of the policy.
            settings: Options of `offpref evaluate`.
        """
        from offpref.pipeline.evaluation.settings import (
            EvaluateSettings,
            SampleSettings,
            evaluate_settings,
        )

        given = {**settings, "pair_set": pair_set, "model": model}
        asked = evaluate_settings(values_of((EvaluateSettings, SampleSettings), given))
        from offpref.pipeline.evaluation.evaluate import evaluate  # brings torch

        with self._bar(TokenBar("evaluate")) as bar:
            done = evaluate(self._fresh(), asked, bar)
        row = done.row
        return PolicyMeasures(
            lines=tuple(evaluation_lines(done)), name=row["name"], rewards=dict(row["rewards"]),
            reverse_kl=row.get("reverse_kl"), entropy=row.get("entropy"),
            accuracy=row.get("accuracy"), row=row,
        )  # fmt: skip

    def query(self, question: str, *, limit: int | None = None, **parameters: str) -> AnswerTable:
        """Return the answer to a named question, or to one SELECT, in memory (stage three).

        Args:
            question: Its name, or SQL over the views.
            limit: Rows at most; None for all.
            parameters: The question's, as ``offpref query --set`` takes them.
        """
        store = self._questions()
        found = store.arrow(question, limit=limit, **parameters)
        left_out = store.left_out(question, found.column_names, **parameters)
        return AnswerTable(found, left_out)

    def sql(self, question: str, **parameters: str) -> "Relation":
        """Return the same as a relation of DuckDB's: ``.df()``, ``.arrow()``, ``.pl()`` read it.

        It shows the store as it is now, and ends when the store is closed.
        """
        return self._questions().sql(question, **parameters)

    def report(self, output: Folder, **settings: Any) -> Page:
        """Write one HTML page of the store's runs and pairs.

        Args:
            output: File to write.
            settings: Options of `offpref report`: ``run``, ``max_pairs``, ``title``, ``overwrite``.
        """
        asked = settings_of(PageSettings, {**settings, "output": output})
        from offpref.stores.report.html import write_report

        done = write_report(self._fresh(), asked.output, asked.page)
        return Page(lines=(report_line(done),), path=done.path)

    def export(self, output: Folder, *, to: str, **settings: Any) -> Exported:
        """Write what runs measured for other tools.

        Args:
            output: Folder to make, whole or not at all.
            to: ``tensorboard`` or ``parquet``.
            settings: ``runs``: names of runs, one or several; ``view``: a view to write as Parquet,
                or several; ``overwrite``.
        """
        from offpref.pipeline.boards.export_settings import ExportSettings

        asked = settings_of(ExportSettings, {**settings, "output": output, "to": to})
        from offpref.pipeline.boards.export import export
        from offpref.stores.query.catalog import open_catalog

        with open_catalog(self.path) as catalog:
            number = export(catalog, asked)
        line = export_line(asked, number)
        return Exported(lines=(line,), path=asked.output, num_written=number)

    def pairs(self) -> list[Pairs]:
        """Return all complete versions of all pair sets, oldest first."""
        from offpref.pipeline.pairs.pair_sets import pair_sets

        store = self._fresh()
        return [
            Pairs.of(each, list(version_lines(store, each)), is_new=False)
            for each in pair_sets(store)
        ]

    def runs(self) -> AnswerTable:
        """Return the runs of the store, newest first: the answer to the question ``runs``."""
        return self.query("runs")

    def batches(
        self, pair_set: PairSetName, *, model: Folder, policy: "nn.Module", **settings: Any
    ) -> "Batches":
        """Return what `train` streams, for a loop of one's own: tensors and stored scores.

        Args:
            pair_set: The pairs.
            model: Folder that the policy comes from; says which reference is meant by default.
            policy: The model that is trained, as transformers loads it, where it will run.
            settings: Options of `offpref train` that say what is read and in which order, those of
                the loss among them; ``loss_type`` as for `train`.
        """
        from .batches import Batches

        given = {**settings, "pair_set": pair_set, "model": model}
        return Batches(self._fresh(), policy, given)

    def _train(
        self, verb: str, asked: "TrainSettings", callbacks: "Sequence[Callback]" = ()
    ) -> Run:
        from offpref.pipeline.models.devices import check_kernels  # these bring torch
        from offpref.pipeline.training.plan import plan_training
        from offpref.pipeline.training.train import train

        check_kernels(asked.kernels, asked.device)
        plan = plan_training(self._fresh(), asked)
        with self._bar(StepBar(verb)) as bar:
            done = train(plan, bar, callbacks)
        return _run(done)

    def _questions(self) -> "Notebook":
        from offpref.stores.query.notebook import Notebook

        if self._notebook is None:
            self._notebook = Notebook(self.path)
        else:
            self._notebook.refresh()
        return self._notebook

    def _contents(self) -> list[str]:
        from offpref.stores.maintenance.listing import COLUMNS, KINDS, list_contents
        from offpref.stores.query.texttable import text_table

        return text_table(COLUMNS, KINDS, list_contents(self._fresh()))


def _run(done: "TrainSummary") -> Run:
    last, held_out = done.last, done.held_out
    return Run(
        lines=tuple(training_lines(done)),
        name=done.name,
        run_id=done.run_id,
        output_dir=done.output_dir,
        num_steps=done.num_steps,
        metrics={} if last is None else {"loss": last.loss, **last.metrics},
        held_out=_held_out(held_out),
    )


def _held_out(found: "Mapping[str, Sequence[StepMeasurement]]") -> dict[str, float]:
    """Return what was measured of held-out pairs last; of several splits by SPLIT/NAME."""
    metrics: dict[str, float] = {}
    for split, measured in found.items():
        prefix = "" if len(found) == 1 else f"{split}/"
        last = {"loss": measured[-1].loss, **measured[-1].metrics}
        metrics |= {f"{prefix}{name}": value for name, value in last.items()}
    return metrics
