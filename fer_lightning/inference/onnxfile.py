"""Running ONNX files: a graph from uint8 faces to calibrated probabilities, described by the JSON of a model file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_lightning.errors import UserError, flat
from fer_lightning.inference.description import KEY, parse

INPUT, OUTPUT = "faces", "probabilities"
"""Names of the graph's input, uint8 (N, size, size), and output, float32 (N, C)."""


class Session:
    """An ONNX file that runs on the CPU.

    Args:
        path: the file.
        threads: of a forward pass; None for as many as there are cores.

    Attributes:
        description: from the file's metadata.

    Raises:
        UserError: onnxruntime is not installed, or the file is missing, damaged or not one of this project.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        ort = package("onnxruntime")
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        options = ort.SessionOptions()
        options.log_severity_level = 4  # its errors are raised as well
        options.intra_op_num_threads = threads or 0
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own types derive from it directly
            raise UserError(f"{path}: damaged, or not an ONNX file ({flat(error)}); export it again") from None
        text = self._session.get_modelmeta().custom_metadata_map.get(KEY)
        names = [*(i.name for i in self._session.get_inputs()), *(o.name for o in self._session.get_outputs())]
        if text is None or names != [INPUT, OUTPUT]:
            raise UserError(f"{path}: an ONNX file, but not one that `fer-lightning export` wrote")
        self.description = parse(text, path)
        size, classes = self.description.size, len(self.description.classes)
        if [*self._session.get_inputs()[0].shape[1:], *self._session.get_outputs()[0].shape[1:]] != [
            size,
            size,
            classes,
        ]:
            raise UserError(f"{path}: its graph is not that of its description; export it again")

    def probabilities(self, faces: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Calibrated probabilities, float32 (N, C), of grey faces, uint8 (N, H, W)."""
        return self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(faces)})[0]  # type: ignore[no-any-return]


def package(name: str) -> Any:
    """A package of the extra `onnx`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed: pip install 'fer-lightning[onnx]'") from None
