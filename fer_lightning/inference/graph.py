"""Writing ONNX files: a graph from uint8 faces to calibrated probabilities."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fer_lightning.inference.description import KEY, Description
from fer_lightning.inference.onnxfile import INPUT, OUTPUT, package
from fer_lightning.inference.tta import views
from fer_lightning.models.heads import adjusted, log_prior
from fer_lightning.models.network import FaceNetwork

OPSET = 18
"""The oldest that `torch.onnx.export` writes without converting versions."""

CALIBRATION_BATCH = 32


class Graph(nn.Module):
    """Faces, uint8 (N, H, W), to calibrated probabilities, float32 (N, C): what is exported."""

    def __init__(self, networks: Sequence[FaceNetwork], description: Description) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.description = description
        for i, member in enumerate(description.members):
            self.register_buffer(f"prior{i}", log_prior(member.class_counts))

    def forward(self, faces: Tensor) -> Tensor:
        seen = list(views(faces, self.description.tta))
        images = torch.cat(seen)[:, None].float() / 255  # in one pass, since quantising copies the weights of each
        all_logits: list[Tensor] = []
        for i, (network, member) in enumerate(zip(self.networks, self.description.members, strict=True)):
            logits = adjusted(network(images), getattr(self, f"prior{i}"), member.posthoc_tau)
            # Numbers, as torch before 2.10 takes a traced size for one that varies.
            all_logits += logits.reshape(len(seen), -1, len(self.description.classes)).unbind()
        logits = all_logits[0]
        if len(all_logits) > 1:
            logits = torch.stack([one.softmax(1) for one in all_logits]).mean(0).log()
        return (logits / self.description.calibration.temperature).softmax(1)


def export(path: Path, networks: Sequence[FaceNetwork], description: Description, *, int8: bool = False) -> None:
    """Write the graph of networks, which are on the CPU, with weights and arithmetic of float32.

    Args:
        path: the file to write.
        networks: the members.
        description: of them.
        int8: store weights in 8 bits where they are integers times a scale of their channel; they become float32 when
            the file is loaded.

    Raises:
        UserError: onnx or onnxscript is not installed.
    """
    onnx = package("onnx")
    package("onnxscript")
    graph = Graph(networks, description).eval()
    # A batch of 2, since a dimension of 1 would be taken for fixed; the new exporter has errors before torch 2.10.
    example = torch.zeros(2, description.size, description.size, dtype=torch.uint8)
    new = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 10)
    shapes: dict[str, Any] = (
        {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if new else {"dynamic_axes": {INPUT: {0: "batch"}}}
    )
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # of deprecations inside the exporter
        torch.onnx.export(
            graph,
            (example,),
            path,
            dynamo=new,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
            **shapes,
        )
    if int8:
        _pack(path)
    onnx.checker.check_model(path)
    describe(path, description)


def _pack(path: Path) -> None:
    """Store weights as integers and scales, where that changes no more than their last digits."""
    onnx = package("onnx")
    model = onnx.load(path)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    axes = {}  # of the output channels
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in stored:
            rows_are_outputs = node.op_type == "Conv" or any(a.name == "transB" and a.i for a in node.attribute)
            axes[node.input[1]] = 0 if rows_are_outputs else 1
    for name, axis in axes.items():
        weights = onnx.numpy_helper.to_array(stored[name])
        others = tuple(i for i in range(weights.ndim) if i != axis)
        scales = np.maximum(np.abs(weights).max(others, keepdims=True), np.float32(1e-30)) / np.float32(127)
        integers = np.rint(weights / scales).astype(np.int8)
        if not np.allclose(integers * scales, weights, rtol=1e-5, atol=0):
            continue
        model.graph.initializer.remove(stored[name])
        parts = {f"{name}.int8": integers, f"{name}.scale": scales}
        model.graph.initializer.extend(onnx.numpy_helper.from_array(array, part) for part, array in parts.items())
        # Not DequantizeLinear: onnxruntime would compute it in every run, and not merge norms into convolutions.
        cast = onnx.helper.make_node("Cast", [f"{name}.int8"], [f"{name}.cast"], to=onnx.TensorProto.FLOAT)
        scaled = onnx.helper.make_node("Mul", [cast.output[0], f"{name}.scale"], [name])
        for node in (scaled, cast):
            model.graph.node.insert(0, node)
    onnx.save(model, path)


def describe(path: Path, description: Description) -> None:
    """Put the description into an ONNX file's metadata, in place of all else that is there."""
    onnx = package("onnx")
    model = onnx.load(path)
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=description.model_dump_json())
    onnx.save(model, path)


def quantize(source: Path, path: Path, faces: NDArray[np.uint8], description: Description) -> None:
    """Write an ONNX file with weights and activations of 8 bits.

    Per channel and with a range of 7 bits: on CPUs without VNNI instructions products of full 8 bits overflow.

    Args:
        source: a file of float32.
        path: the file to write.
        faces: uint8 (N, H, W), of the training set: activations get the range that they have on these.
        description: of the new file.

    Raises:
        UserError: onnx or onnxruntime is not installed.
    """
    package("onnx")
    package("onnxruntime")
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Faces(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Any] = iter(np.array_split(faces, max(1, len(faces) // CALIBRATION_BATCH)))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    prepared = path.with_name(f".{path.name}.prepared")
    try:
        with _quiet("root"):
            quant_pre_process(source, prepared)
            quantization.quantize_static(
                prepared,
                path,
                Faces(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
    finally:
        prepared.unlink(missing_ok=True)
    describe(path, description)


class _quiet:  # noqa: N801
    """Suppress a logger's messages below errors."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)
