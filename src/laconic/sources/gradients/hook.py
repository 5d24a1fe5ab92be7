"""The communication hook itself. DDP reads its annotations, so they are no strings here."""

from typing import Any

import torch
import torch.distributed as dist


def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """For `DistributedDataParallel.register_comm_hook(state, hook)`; state: of `compressor`, or a `OneBitAdam`."""
    future: torch.futures.Future[torch.Tensor] = state.on_bucket(bucket)
    return future
