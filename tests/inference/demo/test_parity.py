"""Boxes, crops and probabilities in a real browser equal those of Python."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fer_lightning.inference.demo.libraries import LIBRARIES, read
from tests.inference.demo.conftest import LOADED, RULE, choose, png, results, watched

pytestmark = pytest.mark.slow

SIDE, SHIFT = RULE.values()


def reference_crop(image: Image.Image, box: list[float]) -> np.ndarray[Any, Any]:
    """By padding the image as far as the frame reaches beyond it, then Pillow."""
    x, y, width, height = box
    side = SIDE * (width + height) / 2
    left, top = x + (width - side) / 2, y + (height - side) / 2 + SHIFT * height
    before = [max(int(np.ceil(-start)), 0) for start in (top, left)]
    after = [max(int(np.ceil(end)), 0) for end in (top + side - image.height, left + side - image.width)]
    grey = np.pad(np.asarray(image.convert("L")), list(zip(before, after, strict=True)), mode="edge")
    frame = (left + before[1], top + before[0], left + before[1] + side, top + before[0] + side)
    return np.asarray(Image.fromarray(grey).resize((48, 48), Image.Resampling.BICUBIC, box=frame))


def reference_boxes(image: Image.Image, file: Path) -> list[list[float]]:
    """BlazeFace by OpenCV, for images that shrink."""
    import cv2

    pixels, scale = np.asarray(image), 192 / max(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (192 - width) // 2, (192 - height) // 2
    square = np.zeros((192, 192, 3), np.uint8)
    square[top : top + height, left : left + width] = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    net = cv2.dnn.readNetFromTFLite(str(file))
    net.setInput(cv2.dnn.blobFromImage(square, 1 / 127.5, mean=(127.5,) * 3))
    small, large = sorted(net.forward(net.getUnconnectedOutLayersNames()), key=np.size)
    scores = 1 / (1 + np.exp(-np.ravel(small)))
    cells = (np.arange(48) + 0.5) * 4
    anchors = np.stack(np.meshgrid(cells, cells), -1).reshape(-1, 2)
    values = np.reshape(large, (-1, 16))
    centres, sizes = values[:, :2] + anchors - (left, top), values[:, 2:4]
    stretch = np.array([image.width / width, image.height / height])
    boxes = np.hstack([(centres - sizes / 2) * stretch, sizes * stretch])
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.5, 0.3)
    return sorted(boxes[np.ravel(kept)].tolist())


def reference_probabilities(model: Path, faces: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"faces": np.stack(faces)})[0])


@pytest.mark.parametrize("size", [(470, 329), (329, 470), (480, 100)])
def test_boxes_and_probabilities_equal_those_of_python(
    page: Any, group: Image.Image, network: Path, assets: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    image = Image.new("RGB", size)
    image.paste(group.resize((470, 329)), (0, max(size[1] - 329, -60)))
    choose(page, png(image))
    found = results(page)
    (tmp_path / "blaze.tflite").write_bytes(read(LIBRARIES["blaze"], assets))
    expected = reference_boxes(image, tmp_path / "blaze.tflite")
    assert len(expected) >= 1
    np.testing.assert_allclose([box for box, _ in found], expected, atol=0.01)
    crops = [reference_crop(image, box) for box, _ in found]
    np.testing.assert_allclose([p for _, p in found], reference_probabilities(network, crops), atol=1e-3)


@pytest.mark.parametrize("size", [(1000, 700), (700, 1000), (3000, 2100), (1900, 400)])
def test_large_photos_are_searched_as_predict_does(
    page: Any, group: Image.Image, network: Path, assets: Path, tmp_path: Path, size: tuple[int, int]
) -> None:
    from fer_lightning.inference.faces import blaze, frame

    image = group.resize((3000, 2100)) if size[0] == 3000 else Image.new("RGB", size, "grey")
    if size[0] != 3000:
        image.paste(group.resize((size[0] // 2, round(size[0] * 0.35))), (10, -80))
    image.paste(group.resize((300, 210)), (5, size[1] - 215))  # faces that only parts show large enough
    choose(page, png(image))
    found = results(page)
    (tmp_path / "blaze.tflite").write_bytes(read(LIBRARIES["blaze"], assets))
    detector = blaze.BlazeFace(tmp_path / "blaze.tflite")
    expected = sorted(detector(np.asarray(image)), key=lambda face: face.x)
    assert len(expected) >= 2
    boxes = [[face.x, face.y, face.width, face.height] for face in expected]
    np.testing.assert_allclose([box for box, _ in found], boxes, atol=1e-4 * max(size))
    crops = [frame.crop(np.asarray(image), face, detector.rule) for face in expected]
    np.testing.assert_allclose([p for _, p in found], reference_probabilities(network, crops), atol=1e-3)
    notes = [{"small": "small face", "cut": "cut by the edge", "turned": "turned away"}[note]
             for face in expected for note in frame.concerns(np.asarray(image), face, detector.rule)]  # fmt: skip
    shown = "; ".join(text for text in page.locator(".note").all_text_contents() if text)
    assert shown == "; ".join(notes)


def test_notes_equal_those_of_python(page: Any) -> None:
    from fer_lightning.inference.faces import frame

    image = np.zeros((200, 200, 3), np.uint8)
    rule = frame.CropRule(side=1.0)
    for x, side, nose in [(50, 100, 0.5), (50, 100, 0.85), (50, 100, 0.93), (50, 100, 0.99), (-12, 100, 0.5),
                          (-8, 100, 0.5), (50, 39, 0.5), (50, 41, 0.5)]:  # fmt: skip
        points = [[x + share * side, 80.0] for share in (0.3, 0.7, nose, 0.5, 0.0, 1.0)]
        face = frame.Face(x, 50, side, side, 1.0, tuple((px, py) for px, py in points))
        found = page.evaluate(
            """async ([points, frame, limits]) => {
                const { concerns } = await import('/concerns.js');
                return concerns({ width: 200, height: 200 }, { points }, frame, limits);
            }""",
            [points, {"left": x, "top": 50, "side": side},
             {"small": frame.SMALL, "cut": frame.CUT, "turned": frame.TURNED}],
        )  # fmt: skip
        assert [note.split()[0] for note in found] == list(frame.concerns(image, face, rule)), (x, side, nose)


def test_crops_equal_those_of_pillow(page: Any) -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (120, 160, 3), dtype=np.uint8))
    boxes = [[x, y, size, size * stretch] for x, y, size, stretch in zip(
        random.uniform(-40, 130, 60), random.uniform(-40, 90, 60), random.uniform(8, 170, 60),
        random.uniform(0.8, 1.25, 60), strict=True)]  # fmt: skip
    boxes += [[0, 0, 48, 48], [40, 40, 48 / SIDE, 48 / SIDE], [-500, -500, 20, 20]]
    page.evaluate("async () => { window.own = await import('/crop.js'); }")
    crops = page.evaluate(
        """([data, boxes, rule]) => {
            const rgba = Uint8ClampedArray.from(atob(data), (c) => c.charCodeAt(0));
            const image = new ImageData(rgba, 160, 120);
            const named = boxes.map(([x, y, width, height]) => ({ x, y, width, height }));
            return named.map((box) => [...own.crop(image, own.frameOf(box, rule), 48)]);
        }""",
        [base64.b64encode(image.convert("RGBA").tobytes()).decode(), boxes, {"side": SIDE, "shift": SHIFT}],
    )
    for box, pixels in zip(boxes, crops, strict=True):
        difference = np.abs(np.reshape(pixels, (48, 48)) - reference_crop(image, box).astype(int))
        assert difference.max() <= 1, box  # where single precision of the frame's edge counts
        assert difference.mean() < 1e-3, box


def test_webcam_is_read_live(
    launch: Callable[..., Any],
    serving: Callable[..., str],
    network: Path,
    assets: Path,
    portrait: Image.Image,
    tmp_path: Path,
) -> None:
    still = png(portrait.crop((0, 0, 512, 384)).resize((640, 480)), format="JPEG", quality=95, subsampling=0)
    (tmp_path / "cam.mjpeg").write_bytes(still * 5)
    fake = "--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={tmp_path / 'cam.mjpeg'}"
    with watched(launch("--use-fake-ui-for-media-stream", *fake)) as page:
        page.goto(serving(network, assets))
        page.wait_for_selector(LOADED)
        page.focus("#webcam")
        page.keyboard.press("Space")
        page.wait_for_selector("#rate:not(:empty)")
        [(box, probabilities)] = results(page)
        pixels = page.evaluate("""() => {
            const video = document.querySelector("video");
            const context = new OffscreenCanvas(video.videoWidth, video.videoHeight).getContext("2d");
            context.drawImage(video, 0, 0);
            const { data } = context.getImageData(0, 0, video.videoWidth, video.videoHeight);
            let text = "";
            for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
            return btoa(text);
        }""")
        frame = Image.frombytes("RGBA", (640, 480), base64.b64decode(pixels)).convert("RGB")
        expected = reference_probabilities(network, [reference_crop(frame, box)])
        np.testing.assert_allclose([probabilities], expected, atol=1e-3)
        assert page.get_attribute("#webcam", "aria-pressed") == "true"
        page.click("#webcam")
        page.wait_for_selector("#status:text('Webcam off.')")
        assert page.locator(".face").count() == 0
        assert page.evaluate("document.querySelector('video').srcObject") is None
