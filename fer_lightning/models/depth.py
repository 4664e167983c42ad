"""Stochastic depth: Huang et al. 2016, "Deep Networks with Stochastic Depth" (arXiv:1603.09382)."""

from __future__ import annotations

from torch import Tensor, nn


class DropPath(nn.Module):
    """In training, zeroes the branch of a residual block for some images of a batch, and scales that of the others so
    that its mean stays the same.

    Args:
        p: probability for each image.

    Raises:
        ValueError: it is not at least 0 and below 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        _check(p)
        self.p = p

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return branch
        shape = (len(branch),) + (1,) * (branch.ndim - 1)
        return branch * branch.new_empty(shape).bernoulli_(1 - self.p).div_(1 - self.p)


def drop_rates(last: float, blocks: int) -> list[float]:
    """A probability for each block, from 0 for the first of several to `last` for the last (section 3.1).

    Raises:
        ValueError: `last` is not at least 0 and below 1.
    """
    _check(last)
    return [last * i / (blocks - 1) for i in range(blocks)] if blocks > 1 else [last] * blocks


def _check(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"drop_path is a probability, at least 0 and below 1, not {p}")
