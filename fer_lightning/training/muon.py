"""Muon: momentum orthogonalised by Newton-Schulz (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: chosen for speed, singular values end between about 0.7 and 1.2."""

HEAD = "head"
"""Key of a parameter group that marks the head."""


class Muon(Optimizer):
    """Muon for kernels and matrices, AdamW for all others and for the head.

    The update of a matrix is its Nesterov momentum with all singular values brought near 1, times the rate and
    √max(1, rows ÷ columns). A kernel counts as a matrix of (out_channels, in_channels · height · width). PyTorch's own
    Muon takes matrices only.

    Args:
        params: parameters, or groups of them; groups with the key `head` set go to AdamW.
        lr: of Muon; about ten times that of AdamW.
        momentum: of Muon.
        weight_decay: decoupled, for both.
        steps: Newton-Schulz iterations.
        adam_lr: of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).
        betas: of AdamW.
        eps: of AdamW.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Mapping[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.9,
        weight_decay: float = 0.01,
        steps: int = 5,
        adam_lr: float = 5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("adam_lr", adam_lr), ("eps", eps)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        for name, value in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {value}")
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, not {steps}")
        defaults = {"momentum": momentum, "steps": steps, "betas": tuple(betas), "eps": eps}
        groups = []
        for given in params:
            group: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {"params": [given]}
            decay = {"weight_decay": group.get("weight_decay", weight_decay)}
            relative = group.get("lr", lr) / lr if lr else 1.0  # of layers with rates of their own
            members: list[Tensor] = list(group["params"])
            matrices = [] if group.get(HEAD) else [p for p in members if p.ndim > 1]
            taken = {id(p) for p in matrices}
            others = [p for p in members if id(p) not in taken]
            if matrices:
                groups.append({"params": matrices, "muon": True, "lr": lr * relative, **decay})
            if others:
                groups.append({"params": others, "muon": False, "lr": adam_lr * relative, **decay})
        super().__init__(groups, defaults | {"lr": lr, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; a closure computes the loss and its gradient first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    (self._muon if group["muon"] else self._adamw)(parameter, parameter.grad, group)
        return loss

    def _muon(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state, lr, momentum = self.state[parameter], group["lr"], group["momentum"]
        average = state.setdefault("momentum", torch.zeros_like(gradient))
        average.lerp_(gradient, 1 - momentum)
        update = orthogonalised(gradient.lerp(average, momentum).flatten(1), group["steps"])
        rows, columns = update.shape
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(update.view_as(parameter), alpha=-lr * max(1.0, rows / columns) ** 0.5)

    def _adamw(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, Any]) -> None:
        state, lr, (beta1, beta2) = self.state[parameter], group["lr"], group["betas"]
        first = state.setdefault("first", torch.zeros_like(gradient))
        second = state.setdefault("second", torch.zeros_like(gradient))
        step = state.setdefault("step", torch.tensor(0.0)).add_(1).item()
        first.lerp_(gradient, 1 - beta1)
        second.lerp_(gradient.square(), 1 - beta2)
        scale = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.addcdiv_(first, scale, value=-lr / (1 - beta1**step))


def orthogonalised(matrix: Tensor, steps: int = 5) -> Tensor:
    """The orthogonal matrix nearest to a matrix (M, N), approximately: the same singular vectors, and values near 1.

    In bfloat16 on a GPU, which is accurate enough, and in the matrix's own type elsewhere.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrix.bfloat16() if matrix.is_cuda else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if tall else x
    return x.to(matrix.dtype)
