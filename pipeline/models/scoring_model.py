"""Language models as scorers, which are run on packed rows with or without gradient.

``ScoringModel`` is the one forward pass of scoring and of training. It runs the backbone on packed
rows, keeps only the positions whose next token belongs to a completion, and hands those to the
kernels together with the output head, so that whole logits never exist.

A self-check at load time decides which of three routes it takes; see ``routes``.

Letters in shape comments: R rows, L tokens of the longest row, T completion tokens, H hidden size,
V vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from offpref.kernels.distributions import HiddenReference, Reference, TopKReference
from offpref.kernels.forms import Form, choose_form
from offpref.kernels.head import OutputHead
from offpref.kernels.linear import NEEDS_REFERENCE, WANTED, linear_logits, linear_token_scores
from offpref.kernels.logits import token_scores
from offpref.kernels.topk import linear_top_tokens, top_tokens, topk_kl
from offpref.stores.errors import ModelError

from .batches import PackedBatch, collate_rows, separate_rows
from .gradients import GradientMemory
from .heads import HeadConvention, head_conventions
from .masks import mask_rule
from .packing import LengthSwitch, PackedRow
from .routes import PackingReport, Precision, Route, Way


class TokenScores(NamedTuple):
    """The results of a forward pass for each completion token; None for those not asked for.

    A tuple, because FSDP2 looks for tensors that need gradients inside tuples, not in dataclasses.
    """

    sequence_index: Tensor
    """The caller's number of the sequence that each token belongs to, [T] int64."""
    token_logps: Tensor | None = None
    """Log-probability in nats, [T] float32 (float64 where the model is float64)."""
    entropy: Tensor | None = None
    """Entropy of the distribution that the token was drawn from, in nats, [T]."""
    log_sum_sq_probs: Tensor | None = None
    """log sum_v q(v)^2 of that distribution, without gradient, [T]; for WPO's weights."""
    forward_kl: Tensor | None = None
    """KL(reference || policy) at each token, in nats, [T]; a lower bound against the top k."""
    reverse_kl: Tensor | None = None
    """KL(policy || reference) at each token, in nats, [T]; against a whole reference only."""
    top_ids: Tensor | None = None
    """The k most likely tokens, likeliest first, [T, k] int64."""
    top_logps: Tensor | None = None
    """The log-probs of these tokens, [T, k]."""
    top_tail_logps: Tensor | None = None
    """Log of the total probability of all other tokens, [T]."""
    hidden: Tensor | None = None
    """Input of the output head, [T, H], in the dtype of the model."""
    logits: Tensor | None = None
    """All logits, [T, V]; for checks of a few tokens."""


class ScoringModel(nn.Module):
    """A causal language model that scores the completions of packed rows."""

    def __init__(
        self,
        model: nn.Module,
        *,
        precision: Precision = "float32",
        route: Route = "packed",
        kernels: Form | None = None,
    ) -> None:
        """Wrap a transformers model without checks; see :func:`loading.load_scoring_model`.

        Args:
            model: Any of transformers' models for causal language modelling.
            precision: ``bf16-autocast`` runs the backbone under autocast; the others take the
                dtype that the weights have.
            route: How rows are computed, see the module's docstring.
            kernels: Form of the kernels; None for the best one on the model's device.
        """
        super().__init__()
        self.model: Any = model  # transformers' classes have no common type with what is used here
        self.precision = precision
        self.kernels = kernels
        self.route: Route = route
        self.convention: HeadConvention = head_conventions(self.config)[0]
        self.mask_rule = mask_rule(self.config, attention=self.attention)
        if self.mask_rule is None and route == "packed":
            self.route = "separate"
        self.report: PackingReport | None = None
        self.gradients: GradientMemory | None = None
        """Where gradients are kept; None if that is left to torch."""

    @property
    def config(self) -> Any:
        """The configuration of the language model."""
        return self.model.config.get_text_config()

    @property
    def attention(self) -> str:
        """The attention implementation, ``sdpa`` or ``eager`` unless another was asked for."""
        return str(self.config._attn_implementation)

    @property
    def packs(self) -> bool:
        """Whether completions of one prompt share a row."""
        return self.route == "packed"

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self.config.vocab_size)

    @property
    def hidden_size(self) -> int:
        """Number of columns of the output head."""
        return self.head.hidden_size

    @property
    def hidden_bytes(self) -> int:
        """Bytes of one input of the output head; float32 if only the layers are autocast."""
        return self.hidden_size * self.dtype.itemsize

    @property
    def max_positions(self) -> int | None:
        """Maximum sequence length according to the configuration; None if it has none."""
        value = getattr(self.config, "max_position_embeddings", None)
        return int(value) if value else None

    @property
    def windows(self) -> list[int]:
        """Sizes of the sliding windows of its layers; empty where every layer sees everything."""
        rule = self.mask_rule
        return [] if rule is None else [window for window in rule.windows.values() if window]

    @property
    def length_switch(self) -> LengthSwitch | None:
        """The length at which rotary embeddings change for a whole batch, None for most models."""
        parameters = getattr(self.config, "rope_parameters", None) or {}
        nested = [value for value in parameters.values() if isinstance(value, dict)]
        for rope in nested or [parameters]:
            kind = rope.get("rope_type", "default")
            if kind == "longrope":
                return LengthSwitch(boundary=int(rope["original_max_position_embeddings"]))
            if "dynamic" in kind:
                boundary = int(self.config.max_position_embeddings)
                return LengthSwitch(boundary=boundary, is_gradual=True)
        return None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def kernel_form(self) -> Form:
        """Form of the kernels that scores come from; whole logits are torch's."""
        if self.route == "logits":
            return "torch"
        return choose_form(next(self.parameters()), self.kernels)

    @property
    def head(self) -> OutputHead:
        """The output head as it is now; under FSDP2 it is whole only inside the forward pass.

        Raises:
            ModelError: If the model has no output embedding of the usual form.
        """
        return self._head(self.convention)

    def _head(self, convention: HeadConvention) -> OutputHead:
        layer = self.model.get_output_embeddings()
        weight = getattr(layer, "weight", None)
        if weight is None or weight.ndim != 2:
            raise ModelError(
                f"{type(self.model).__name__} has no output embedding that is a matrix"
            )
        return OutputHead(
            weight=weight,
            bias=getattr(layer, "bias", None),
            scale=convention.scale,
            softcap=convention.softcap,
        )

    def take(self, report: PackingReport) -> None:
        """Compute rows in the way that the self-check found correct."""
        self.report = report
        self.route, self.convention = report.way

    def keep_gradients(self) -> None:
        """Keep gradients in memory of their own; only for a single process on a CPU."""
        self.gradients = GradientMemory(each for each in self.parameters() if each.requires_grad)
        self.gradients.sum_embeddings(self.model)

    def collate(self, rows: Sequence[PackedRow], *, multiple_of: int = 1) -> PackedBatch:
        """Return the tensors of some rows, with one completion per row if the model cannot pack."""
        rows = rows if self.packs else separate_rows(rows)
        return collate_rows(rows, multiple_of=multiple_of)

    def forward(
        self,
        batch: PackedBatch,
        want: Sequence[str] = ("token_logps",),
        *,
        reference: Reference | None = None,
        measured: Sequence[str] = (),
        top_k: int | None = None,
        way: Way | None = None,
    ) -> TokenScores:
        """Return the wanted results for each completion token of a batch on the model's device.

        Args:
            batch: As :meth:`collate` makes it.
            want: Names of the fields of :class:`TokenScores`.
            reference: What KLs are taken against, in the order of the batch's tokens.
            measured: More names, without gradient and computed separately: asking for them does
                not change the wanted results, to the last bit.
            top_k: How many most likely tokens to return; None for none.
            way: How to compute rows, if not in the model's own way; for the self-check.
        """
        route, convention = way or Way(self.route, self.convention)
        if route == "logits":
            return self._forward_logits(batch, (*want, *measured), reference, top_k)
        with self._autocast():
            hidden_rows = self._backbone(batch, route)
        hidden = hidden_rows.flatten(0, 1).index_select(0, batch.gather_index)
        head = self._head(convention)
        if self.gradients is not None and torch.is_grad_enabled():
            head = replace(head, weight_grad=self.gradients.summed(head.weight))
        kernel_want = [name for name in want if name in WANTED]
        scores: dict[str, Tensor] = {}
        if kernel_want:
            scores = linear_token_scores(
                hidden, head, batch.labels, reference, want=kernel_want, form=self.kernels
            )
        if measured:
            with torch.no_grad():
                scores |= linear_token_scores(
                    hidden.detach(),
                    head,
                    batch.labels,
                    reference,
                    want=measured,
                    form=self.kernels,
                )
        if top_k is not None:
            scores |= _top_fields(linear_top_tokens(hidden, head, top_k))
        return TokenScores(
            sequence_index=batch.sequence_index,
            hidden=hidden if "hidden" in want else None,
            logits=linear_logits(hidden, head) if "logits" in want else None,
            **scores,
        )

    def _backbone(self, batch: PackedBatch, route: Route) -> Tensor:  # [R, L, H]
        switch = self.length_switch
        if switch is None:
            return self._layers(batch, route)
        longest = (batch.position_ids.amax(dim=1) + 1).cpu().numpy()  # on a GPU, this waits for it
        classes = switch.classes(longest)
        kinds = np.unique(classes)
        if len(kinds) == 1:
            return self._layers(batch, route)
        found: Tensor | None = None
        for kind in kinds:
            rows = torch.from_numpy(np.flatnonzero(classes == kind)).to(batch.input_ids.device)
            part = batch.rows(rows)
            hidden = self._layers(part, route)
            if found is None:
                found = hidden.new_zeros(*batch.input_ids.shape, hidden.shape[-1])
            found[rows, : part.input_ids.shape[1]] = hidden
        assert found is not None  # a batch has a row
        return found

    def _layers(self, batch: PackedBatch, route: Route) -> Tensor:  # [R, L, H]
        """Return the last hidden states of rows that the layers compute in one way."""
        self._reset_rotary()
        # Padding comes last and attention is causal: without a mask it changes nothing either.
        arguments: dict[str, Any] = {}
        if route == "packed" and batch.has_shared_prompts:
            assert self.mask_rule is not None
            masks = self.mask_rule.masks(batch.segments, batch.position_ids, self.dtype)
            arguments = {"attention_mask": masks, "position_ids": batch.position_ids}
        output = self.model.base_model(input_ids=batch.input_ids, **arguments)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _forward_logits(
        self,
        batch: PackedBatch,
        want: Sequence[str],
        reference: Reference | None,
        top_k: int | None,
    ) -> TokenScores:
        """Score one row at a time, with the whole logits of that row only."""
        rows, kept = [], []
        row_length = batch.input_ids.shape[1]
        start = 0
        for r in range(batch.input_ids.shape[0]):
            length = int((batch.segments[r] >= 0).sum())  # On a GPU this waits for the device.
            places = batch.gather_index[batch.gather_index // row_length == r] % row_length
            self._reset_rotary()
            with self._autocast():
                logits = self.model(input_ids=batch.input_ids[r : r + 1, :length]).logits[0]
            labels = batch.input_ids[r, places + 1]
            row = _label_scores(logits[places], labels)
            if reference is not None:
                numbers = torch.arange(start, start + len(places), device=places.device)
                names = [name for name in want if name in NEEDS_REFERENCE]
                row |= _reference_scores(logits[places], labels, reference.rows(numbers), names)
            if top_k is not None:
                row |= _top_fields(top_tokens(logits[places], top_k))
            rows.append(row)
            start += len(places)
            if "logits" in want:
                kept.append(logits[places])
        names = [name for name in rows[0] if name in want or name.startswith("top_")]
        return TokenScores(
            sequence_index=batch.sequence_index,
            **{name: torch.cat([row[name] for row in rows]) for name in names},
            logits=torch.cat(kept) if kept else None,
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision != "bf16-autocast":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _reset_rotary(self) -> None:
        """Forget the longest sequence seen so far: dynamic NTK scaling would depend on it."""
        switch = self.length_switch
        if switch is None or not switch.is_gradual:
            return
        for module in self.model.modules():
            if hasattr(module, "max_seq_len_cached") and hasattr(module, "original_inv_freq"):
                module.max_seq_len_cached = switch.boundary
                module.inv_freq = module.original_inv_freq.to(module.inv_freq.device)


def _label_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:  # [T] each
    wide = logits if logits.dtype == torch.float64 else logits.float()
    logps = torch.log_softmax(wide, dim=-1)
    entropy = -(logps.exp() * logps).sum(dim=-1)
    return {
        "token_logps": logps.gather(-1, labels[:, None]).squeeze(-1),
        "entropy": entropy,
        "log_sum_sq_probs": (2 * logps.detach()).logsumexp(dim=-1),
    }


def _reference_scores(
    logits: Tensor,  # [T, V]
    labels: Tensor,  # [T]
    reference: Reference,
    names: Sequence[str],
) -> dict[str, Tensor]:  # [T] each
    """Return KLs from the whole logits of a row."""
    if isinstance(reference, HiddenReference):
        ref_logits = linear_logits(reference.hidden, reference.head)
        return token_scores(logits, labels, ref_logits, want=names)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    lse = wide.logsumexp(1, keepdim=True)
    kl = topk_kl(reference, wide.gather(1, reference.ids), lse)
    return {name: kl.squeeze(1) for name in names if name == "forward_kl"}


def _top_fields(top: TopKReference) -> dict[str, Tensor]:
    return {"top_ids": top.ids, "top_logps": top.logps, "top_tail_logps": top.tail_logps}
