"""A bitwise reproducible sum of gradients over ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel


class OrderedDDP(DDPStrategy):
    """DDP that adds gradients in the order of the ranks, on CPUs with more than two ranks.

    gloo's order of summation depends on the position in a bucket, and DDP rebuilds its buckets after the first step of
    a process: a resumed run would add in another order than an uninterrupted one. Two ranks have only one order. On
    GPUs this would cost too much.
    """

    def configure_ddp(self) -> None:
        super().configure_ddp()
        if self.root_device.type == "cpu" and self.world_size > 2:
            assert isinstance(self.model, DistributedDataParallel)
            self.model.register_comm_hook(None, lambda _, bucket: _mean_in_order(bucket.buffer()))


def _mean_in_order(mine: torch.Tensor) -> torch.futures.Future[torch.Tensor]:
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]

    def mean(gathered: torch.futures.Future[Any]) -> torch.Tensor:
        gathered.wait()
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total.div_(len(parts))

    work = dist.all_gather(parts, mine, async_op=True)
    assert work is not None
    added: torch.futures.Future[torch.Tensor] = work.get_future().then(mean)
    return added
