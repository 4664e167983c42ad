"""A network, the libraries of the page, and a browser."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fer_lightning.inference.demo.libraries import LIBRARIES
from fer_lightning.inference.demo.server import server
from fer_lightning.inference.demo.site import site
from fer_lightning.inference.description import Description, MemberConfig
from fer_lightning.inference.faces.frame import CropRule
from fer_lightning.metrics.calibration import Calibration

CLASSES = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]

RULE = {"side": 1.14, "shift": -0.04}
"""How faces are cut out."""

DESCRIPTION = Description(
    name="toy",
    version="0",
    commit="none",
    classes=CLASSES,
    size=48,
    members=[MemberConfig(model={}, class_counts=[1] * len(CLASSES))],
    calibration=Calibration(),
    crop={"haar": CropRule(1.02, 0.0), "blaze": CropRule(**RULE)},
    protocol={},
    data={},
    scores={"test/accuracy": 0.7012},
    precision="fp32",
    notes="",
).model_dump()


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


LOADED = "#choose:enabled, #problem:not(:empty)"
"""Matches once the page can be used, or says why it cannot."""


@pytest.fixture(scope="session")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Image.Image:
    """NASA's portrait of Eileen Collins, in the public domain; 512 by 512 pixels."""
    folder = tmp_path_factory.mktemp("portrait")
    wanted = ["--no-deps", "--only-binary", ":all:", "scikit-image>=0.25,<0.27"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", *wanted, "-d", folder], capture_output=True, text=True
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"no portrait: pip download scikit-image failed: {done.stderr[-200:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Image.open(io.BytesIO(wheel.read("skimage/data/astronaut.png"))).convert("RGB")


@pytest.fixture(scope="session")
def group(portrait: Image.Image) -> Image.Image:
    """A large face, a darker and smaller one, and one that the edge cuts."""
    image = Image.new("RGB", (1000, 700), (150, 170, 180))
    image.paste(portrait, (20, 150))
    image.paste(portrait.crop((130, 0, 330, 250)).point(lambda value: value * 0.7), (600, 300))
    image.paste(portrait.crop((100, 0, 250, 300)), (850, 20))
    return image


@pytest.fixture
def page(browser: Any, serving: Callable[..., str], network: Path, assets: Path) -> Iterator[Any]:
    """The page, ready; afterwards, no request must have left this machine, and no script failed."""
    with watched(browser) as page:
        page.goto(serving(network, assets))
        page.wait_for_selector(LOADED)
        yield page


class watched:  # noqa: N801
    def __init__(self, browser: Any, **options: Any) -> None:
        self.page, self.requests, self.errors = browser.new_page(**options), [], []  # type: ignore[var-annotated]
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: object, *_: object) -> None:
        self.page.close()
        if kind is None:
            assert self.errors == []
            assert all(re.match(r"(http://127\.0\.0\.1:\d+/|blob:http://127\.0\.0\.1:)", url) for url in self.requests)


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def choose(page: Any, content: bytes, name: str = "photo.png", kind: str = "image/png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": content})


def results(page: Any) -> list[tuple[list[float], list[float]]]:
    """Box and probabilities of each face on the page."""
    page.wait_for_selector(".face")
    cards = page.locator(".face").evaluate_all("all => all.map(one => [one.dataset.box, one.dataset.probabilities])")
    return [(json.loads(box), json.loads(probabilities)) for box, probabilities in cards]
