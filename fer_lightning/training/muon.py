"""Muon: momentum orthogonalised by Newton-Schulz (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: chosen for speed, singular values end between about 0.7 and 1.2."""

GRAM_FROM = 1.5
"""Columns over rows from which products of square matrices cost less."""

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
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                gradients = [parameter.grad for parameter in parameters]
                (self._muon if group["muon"] else self._adamw)(parameters, gradients, group)
        return loss

    def _muon(self, parameters: list[Tensor], gradients: list[Tensor], group: Mapping[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        averages = self._averages("momentum", parameters, gradients)
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, averages, momentum)
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        of_shape: dict[torch.Size, list[int]] = {}  # matrices of one shape are multiplied together, for GPUs
        for i, parameter in enumerate(parameters):
            of_shape.setdefault(parameter.shape, []).append(i)
        for indices in of_shape.values():
            matrices = orthogonalised(torch.stack([updates[i].flatten(1) for i in indices]), group["steps"])
            rows, columns = matrices.shape[1:]
            for i, matrix in zip(indices, matrices, strict=True):
                parameters[i].add_(matrix.view_as(parameters[i]), alpha=-lr * max(1.0, rows / columns) ** 0.5)

    def _adamw(self, parameters: list[Tensor], gradients: list[Tensor], group: Mapping[str, Any]) -> None:
        lr, (beta1, beta2) = group["lr"], group["betas"]
        first, second = (self._averages(name, parameters, gradients) for name in ("first", "second"))
        steps = []
        for parameter in parameters:
            state = self.state[parameter]
            steps.append(float(state.get("step", 0.0)) + 1)
            state["step"] = steps[-1]  # a number, since Lightning would move a tensor to the GPU
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_lerp_(second, torch._foreach_mul(gradients, gradients), 1 - beta2)
        scale = torch._foreach_div(second, [1 - beta2**step for step in steps])
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(parameters, first, scale, [-lr / (1 - beta1**step) for step in steps])

    def _averages(self, name: str, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """State tensors, 0 at first."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(gradient)
        return [self.state[parameter][name] for parameter in parameters]


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """The orthogonal matrices nearest to some (…, M, N), approximately: the same singular vectors, and values near 1.

    In bfloat16 on a GPU, which is accurate enough, and in the matrices' own type elsewhere.
    """
    x: Tensor = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    # Squares of singular values need more digits than bfloat16 has.
    x = _by_gram(x, steps) if not x.is_cuda and x.shape[-1] > GRAM_FROM * x.shape[-2] else _iterated(x, steps)
    x = x.mT if tall else x
    return x.to(matrices.dtype)


def _iterated(x: Tensor, steps: int) -> Tensor:
    """x ← (a + b·xxᵀ + c·(xxᵀ)²)·x, so often."""
    for _ in range(steps):
        x = _factor(x @ x.mT) @ x
    return x


def _by_gram(x: Tensor, steps: int) -> Tensor:
    """The same with square matrices alone: the factors of x are polynomials of xxᵀ, which commute."""
    gram = x @ x.mT
    product = factor = _factor(gram)
    for _ in range(steps - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    return product @ x


def _factor(gram: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    factor = b * gram + c * gram @ gram
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor
