"""The only module that uses albumentations.

Version 2.0.8 is its last release under the MIT licence, and its own random state repeats in every worker and epoch:
therefore each image has its own seed.
"""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.errors import UserError, flat


class Pipeline:
    """Transforms applied in sequence to a grey face.

    Args:
        transforms: each a mapping with `name`, a class of albumentations, and the arguments of that class; those of a
            composition such as OneOf are a list of such mappings.
        key: the config key the transforms come from, for messages.

    Raises:
        UserError: a transform or one of its arguments does not exist, or a value is invalid.
    """

    def __init__(self, transforms: Sequence[Mapping[str, Any]], key: str) -> None:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else its import opens a connection
        import albumentations

        self._key = key
        self._compose = albumentations.Compose([_transform(albumentations, t, key) for t in transforms])

    def __call__(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Transform an image (H, W, 1) with random numbers that depend on `seed` only; the result has the same shape.

        Raises:
            UserError: the pipeline failed, or changed the image's shape or type.
        """
        self._compose.set_random_seed(seed)
        try:
            result: NDArray[np.uint8] = self._compose(image=image)["image"]
        except Exception as error:  # of any kind, by the transform
            raise UserError(
                f"{self._key}: albumentations failed ({flat(error, 300)}): faces are grey images of one channel, which "
                "not every transform takes"
            ) from error
        if result.shape != image.shape or result.dtype != image.dtype:
            raise UserError(
                f"an albumentations pipeline must keep images {image.shape} {image.dtype}, "
                f"but it returned {tuple(result.shape)} {result.dtype}: remove steps like Resize, Normalize, ToTensorV2"
            )
        return result


def _transform(albumentations: Any, spec: Mapping[str, Any], key: str) -> Any:
    arguments = dict(spec)
    name = arguments.pop("name", None)
    cls = getattr(albumentations, str(name), None)
    if isinstance(cls, type) and issubclass(cls, albumentations.BaseCompose):
        inner = arguments.get("transforms")
        if not isinstance(inner, Sequence) or not all(isinstance(one, Mapping) for one in inner):
            raise UserError(f"{key}: {name} needs `transforms`, a list of mappings with `name`")
        arguments["transforms"] = [_transform(albumentations, one, key) for one in inner]
    elif not (isinstance(cls, type) and issubclass(cls, albumentations.BasicTransform)):
        names = [n for n in dir(albumentations) if n[0].isupper()]
        near = difflib.get_close_matches(str(name), names, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"{key}: '{name}' is not a transform of albumentations{hint}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it only warns about unknown arguments
        try:
            return cls(**arguments)
        except Exception as error:  # pydantic, ValueError, TypeError, UserWarning: whatever the version raises
            reason = flat(error, 300)
            raise UserError(f"{key}: {name}({dict(spec)}) is rejected by albumentations: {reason}") from error
