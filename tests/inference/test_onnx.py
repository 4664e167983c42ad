"""ONNX files: the same answers as PyTorch, with nothing but onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fer_lightning import load_model
from fer_lightning.errors import UserError
from fer_lightning.inference import graph
from fer_lightning.inference.demo.command import show
from fer_lightning.inference.description import KEY
from fer_lightning.inference.export import export
from tests.conftest import Command

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="session")
def onnx_file(run: Path, other_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with flip averaging, as one graph."""
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export([run, other_run], file, tta="flip")
    return file


@pytest.fixture(scope="session")
def model_of_both(run: Path, other_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a model file of float32."""
    file = tmp_path_factory.mktemp("both") / "model.safetensors"
    export([run, other_run], file, tta="flip", precision="fp32")
    return file


@pytest.mark.parametrize("n", [1, 4, 60])
def test_graph_answers_like_pytorch(
    n: int, onnx_file: Path, model_of_both: Path, test_images: NDArray[np.uint8]
) -> None:
    session = ort.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    (given,) = session.run(["probabilities"], {"faces": test_images[:n]})
    expected = load_model(model_of_both, accelerator="cpu").probabilities(test_images[:n])
    np.testing.assert_allclose(given, expected, atol=1e-5)
    np.testing.assert_allclose(load_model(onnx_file).probabilities(test_images[:n]), expected, atol=1e-5)


def test_description_travels_in_the_metadata(onnx_file: Path, run: Path) -> None:
    properties = {entry.key: entry.value for entry in onnx.load(onnx_file).metadata_props}
    assert set(properties) == {KEY}
    description = json.loads(properties[KEY])
    assert description["tta"] == "flip"
    assert description["crop"]["blaze"]["side"] > 1
    assert len(description["members"]) == 2


def test_graph_is_evaluated_on_data(
    onnx_file: Path, model_of_both: Path, tmp_path: Path, test_images: NDArray[np.uint8]
) -> None:
    from PIL import Image

    from fer_lightning.inference.evaluate import evaluate

    for i, image in enumerate(test_images[:20]):
        path = tmp_path / f"data/train/{'happy' if i % 2 else 'sad'}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    both = [
        evaluate(file, data=tmp_path / "data", split="all", out=tmp_path / file.suffix, accelerator="cpu")
        for file in (onnx_file, model_of_both)
    ]
    assert both[0]["test/accuracy"] == both[1]["test/accuracy"]
    assert both[0]["test/ece_calibrated"] == pytest.approx(both[1]["test/ece_calibrated"], abs=1e-4)
    assert both[0]["test/ece"] == pytest.approx(both[1]["test/ece"], abs=1e-4)
    assert "test/clean/accuracy" not in both[0]  # nobody knows what it was trained on
    with pytest.raises(UserError, match="name some with --data"):
        evaluate(onnx_file, out=tmp_path / "out")


def test_graph_keeps_its_own_augmentation(onnx_file: Path) -> None:
    assert load_model(onnx_file).tta == "flip"
    with pytest.raises(UserError, match="averages its views inside the graph"):
        load_model(onnx_file, tta="none")


def test_model_file_is_exported_without_its_data(
    model_file: Path, tmp_path: Path, test_images: NDArray[np.uint8]
) -> None:
    checks = export(model_file, tmp_path / "again.onnx")
    assert checks[0].what.startswith("largest difference of a probability")
    expected = load_model(model_file, accelerator="cpu").probabilities(test_images)
    np.testing.assert_allclose(load_model(tmp_path / "again.onnx").probabilities(test_images), expected, atol=1e-5)
    with pytest.raises(UserError, match="8 bits need images"):
        export(model_file, tmp_path / "again.int8.onnx")


@pytest.mark.parametrize("tta", ["none", "flip", "ten_crop"])
def test_exporter_of_torch_before_2_10(
    tta: str, model_file: Path, tmp_path: Path, test_images: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.0+cpu")
    export(model_file, tmp_path / "old.onnx", tta=tta)
    expected = load_model(model_file, accelerator="cpu", tta=tta)
    found = load_model(tmp_path / "old.onnx")
    for n in (0, 1, 3):
        np.testing.assert_allclose(
            found.probabilities(test_images[:n]), expected.probabilities(test_images[:n]), atol=1e-5
        )


def test_graph_of_an_int8_file_keeps_its_integers(run: Path, tmp_path: Path, test_images: NDArray[np.uint8]) -> None:
    sizes = {}
    for precision in ("fp16", "int8"):
        export(run, tmp_path / f"{precision}.safetensors", precision=precision, tta="flip")
        export(tmp_path / f"{precision}.safetensors", tmp_path / f"{precision}.onnx")
        sizes[precision] = (tmp_path / f"{precision}.onnx").stat().st_size
    assert sizes["int8"] < 0.4 * sizes["fp16"]
    expected = load_model(tmp_path / "int8.safetensors", accelerator="cpu").probabilities(test_images)
    np.testing.assert_allclose(load_model(tmp_path / "int8.onnx").probabilities(test_images), expected, atol=1e-5)


@pytest.mark.slow
def test_8_bits_lose_little_and_are_small(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "model.onnx")
    export(run, tmp_path / "model.int8.onnx")
    sizes = [(tmp_path / name).stat().st_size for name in ("model.int8.onnx", "model.onnx")]
    assert sizes[0] < 0.4 * sizes[1]
    operators = {node.op_type for node in onnx.load(tmp_path / "model.int8.onnx").graph.node}
    assert "QuantizeLinear" in operators


def test_file_that_answers_differently_is_not_written(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Any, faces: Any) -> Any:
        return original(self, faces).roll(1, 1)

    original = graph.Graph.forward
    monkeypatch.setattr(graph.Graph, "forward", wrong)
    with pytest.raises(UserError, match=r"differ from PyTorch's by up to .*: not written"):
        export(model_file, tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []


def test_graph_of_another_description_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    graph_of, file = onnx.load(onnx_file), tmp_path / "other.onnx"
    for entry in graph_of.metadata_props:
        entry.value = json.dumps(json.loads(entry.value) | {"size": 96})
    onnx.save(graph_of, file)
    with pytest.raises(UserError, match="its graph is not that of its description"):
        load_model(file)


def test_a_finished_run_becomes_a_page(run: Path, tmp_path: Path) -> None:
    show([str(run)], build=tmp_path / "site")
    assert (tmp_path / "site/index.html").is_file() and (tmp_path / "site/model.onnx").is_file()


def test_file_of_another_project_is_one_line(tmp_path: Path, command: Command) -> None:
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "other", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    model.ir_version = 10
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="not one that `fer-lightning export` wrote"):
        load_model(tmp_path / "other.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    code, error = command("evaluate", tmp_path / "text.onnx", "--data", tmp_path)
    assert code == 1
    assert "damaged, or not an ONNX file" in error
    assert error.count("\n") == 1
