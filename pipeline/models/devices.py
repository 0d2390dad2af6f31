"""The device of a process, and the other processes of its run."""

import atexit
import ctypes
import os
import platform
import resource
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from offpref.kernels.forms import check_form
from offpref.pipeline.ranks import place_among_ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """The processes of one run; if torchrun starts several, the model is split over them."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    mesh: DeviceMesh | None = None
    """Devices over which the weights are split; None for one process."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:  # anything that can be pickled
        """Return the values of all ranks, on every rank; a device sync where there are several."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Wait until all ranks have reached this call."""
        if self.world_size > 1:
            dist.barrier()


def default_device(device: str | None) -> torch.device:
    """Return the device of that name; for None this process's GPU if there is one."""
    if device is None:
        local_rank = os.environ.get("LOCAL_RANK", "0")
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def check_kernels(kernels: str | None, device: str | None) -> None:
    """Raise ValueError where a form of the kernels cannot run on the device of that name."""
    check_form(kernels, default_device(device))  # type: ignore[arg-type] # what it checks


def join_processes(device: str | None) -> Processes:
    """Return this process's place among those of torchrun, joined with the others.

    Args:
        device: As torch names it; None for a GPU if there is one.
    """
    rank, world_size = place_among_ranks()
    place = default_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if world_size == 1:
        return Processes(device=place)
    if not dist.is_initialized() and place.type == "cpu":
        # The threads of gloo end before Python does: one that still runs then aborts the process.
        atexit.register(_leave)
    mesh = init_device_mesh(place.type, (world_size,))
    return Processes(device=place, rank=rank, world_size=world_size, mesh=mesh)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory of this process: of its GPU if it has one, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, for the next tensors. Only glibc supports this.

    A tensor of a few megabytes is otherwise mapped anew each time, and every page of it costs a
    fault: on a CPU a training step took 1.4 times as long. The peak is unchanged. Arrow's buffers
    come from the same heap, because its own allocator keeps megabytes for each thread that ever
    read. oneDNN generates half a megabyte of code per shape; the code that a few microbatches need
    is kept ready, and half of the rest.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _NUM_PRIMITIVES)
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for parameter, value in (_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1):
        libc.mallopt(parameter, value)
    pa.set_memory_pool(pa.system_memory_pool())


_NUM_PRIMITIVES = "64"
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of mallopt(3), in malloc.h
