"""One of two processes that hold a model together; run by test_models.py.

python sharded_worker.py MODEL FOLDER RANK
"""

import os
import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule

from offpref.pipeline.models.loading import load_scoring_model


def main(model_dir: Path, folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=(folder / "rendezvous").as_uri(), rank=rank, world_size=2
    )
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    rows = torch.load(folder / "rows.pt", weights_only=False)
    model = load_scoring_model(model_dir, mesh=mesh)
    batch = model.collate(rows)
    with torch.no_grad():
        scores = batch.split(model(batch).token_logps.numpy())
    model(batch).token_logps.sum().backward()
    kept = {
        "scores": scores,
        "gradients": [p.grad.full_tensor() for p in model.parameters()],
        "route": model.route,
        "num_local": sum(p.to_local().numel() for p in model.parameters()),
        "num_units": sum(isinstance(module, FSDPModule) for module in model.modules()),
    }
    torch.save(kept, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
    os._exit(0)  # threads of gloo outlive the group, and sometimes abort a Python that ends


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
