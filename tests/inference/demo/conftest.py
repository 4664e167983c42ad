"""A network, the libraries of the page, and a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fer_lightning.inference.demo.libraries import LIBRARIES
from fer_lightning.inference.demo.server import server
from fer_lightning.inference.demo.site import site

CLASSES = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]

DESCRIPTION = {
    "format": 1,
    "name": "toy",
    "classes": CLASSES,
    "size": 48,
    "threshold": 0.0,
    "crop": {"haar": {"side": 1.02, "shift": 0.0}, "blaze": {"side": 1.14, "shift": -0.04}},
    "scores": {"test/accuracy": 0.7012},
}


def write_network(path: Path, description: Any = DESCRIPTION, *, output: str = "probabilities") -> Path:
    """An ONNX file as the exporter describes it, with random weights that make its answers depend on every pixel."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    constants = {
        "scale": np.float32(1 / 255),
        "axis": np.array([1]),
        "first": random.normal(0, 0.5, (8, 1, 5, 5)).astype(np.float32),
        "second": random.normal(0, 0.2, (16, 8, 3, 3)).astype(np.float32),
        "last": random.normal(0, 0.05, (16 * 12 * 12, len(CLASSES))).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["faces"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["unit"]),
        helper.make_node("Unsqueeze", ["unit", "axis"], ["image"]),
        helper.make_node("Conv", ["image", "first"], ["a"], strides=[2, 2], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "last"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [output], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("faces", TensorProto.UINT8, ["N", 48, 48])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", len(CLASSES)])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if description is not None:
        text = description if isinstance(description, str) else json.dumps(description)
        model.metadata_props.add(key="fer_lightning", value=text)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    return write_network(tmp_path_factory.mktemp("network") / "toy.onnx")


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The libraries' packages as `npm pack` leaves them."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("assets")
    packages = sorted({library.package for library in LIBRARIES.values()})
    done = subprocess.run(["npm", "pack", *packages], cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm pack failed: {done.stderr[-200:]}")
    return folder


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Starts Debian's Chromium with more arguments."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browsers = []

        def start(*arguments: str) -> Any:
            args = ["--no-sandbox", "--force-color-profile=srgb", *arguments]
            browsers.append(playwright.chromium.launch(executable_path=chromium, args=args))
            return browsers[-1]

        yield start
        for browser in browsers:
            browser.close()


@pytest.fixture(scope="session")
def browser(launch: Callable[..., Any]) -> Any:
    """Without a camera."""
    return launch()


@pytest.fixture
def serving() -> Iterator[Callable[..., str]]:
    """Serves the page of a network; returns its address."""
    running = []

    def start(model: Path, assets: Path | None) -> str:
        running.append(server(site(model, assets), 0))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}/"

    yield start
    for one in running:
        one.shutdown()
        one.server_close()
