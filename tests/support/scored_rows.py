"""What a model says of a few rows, from one forward pass."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from offpref.pipeline.models.packing import PackedRow
from offpref.pipeline.models.scoring_model import ScoringModel


def score_rows(
    scoring_model: ScoringModel, rows: Sequence[PackedRow]
) -> dict[int, NDArray[np.float32]]:
    """Return the token log-probs of each sequence, by its number, from one forward pass."""
    batch = scoring_model.collate(rows).to(scoring_model.device)
    with torch.no_grad():
        scores = scoring_model(batch)
    return batch.split(scores.token_logps.cpu().numpy())
