"""The page in a real browser, against the same computations in Python."""

from __future__ import annotations

import base64
import http.server
import io
import json
import re
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

from fer_lightning.inference.demo.libraries import LIBRARIES, read
from fer_lightning.inference.demo.server import server
from fer_lightning.inference.demo.site import site
from tests.inference.demo.conftest import DESCRIPTION, write_network

pytestmark = pytest.mark.slow

LOADED = "#choose:enabled, #problem:not(:empty)"
SIDE, SHIFT = DESCRIPTION["crop"]["blaze"].values()  # type: ignore[attr-defined]


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
    blaze = pytest.importorskip("fer_lightning.inference.faces.blaze")
    frame = pytest.importorskip("fer_lightning.inference.faces.frame")
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


def test_photos_are_dropped_pasted_and_turned_upright(page: Any, portrait: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    content = base64.b64encode(png(portrait.rotate(90), format="JPEG", quality=95, exif=exif)).decode()
    send = """([data, type, field]) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "a.jpg", { type: "image/jpeg" }));
        document.dispatchEvent(type === "drop" ? new DragEvent(type, { [field]: transfer, cancelable: true })
          : new ClipboardEvent(type, { [field]: transfer }));
    }"""
    for type, field in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.reload()
        page.wait_for_selector(LOADED)
        page.evaluate(send, [content, type, field])
        [(box, _)] = results(page)
        assert box[0] == pytest.approx(175, abs=25) and box[1] == pytest.approx(80, abs=30)
        assert page.text_content("#status").startswith("1 face: ")


def test_several_faces_have_a_card_each_and_notes(page: Any, group: Image.Image) -> None:
    choose(page, png(group.crop((0, 150, 1000, 700))))
    found = results(page)
    assert len(found) >= 2
    assert page.locator(".box").count() == len(found)
    assert [box[0] for box, _ in found] == sorted(box[0] for box, _ in found)
    assert page.text_content("#status").startswith(f"{len(found)} faces: ")
    choose(page, png(group.resize((300, 210))))
    page.wait_for_selector("text=small face")


def test_pictures_without_a_face_and_other_files_are_reported(page: Any) -> None:
    choose(page, png(Image.new("RGB", (300, 200), "green")))
    page.wait_for_selector("#status:text('No face was found.')")
    choose(page, b"no picture", "notes.txt", "text/plain")
    page.wait_for_selector("#problem:text('notes.txt is no picture that this browser can read')")
    choose(page, png(Image.new("RGBA", (1, 1))))
    page.wait_for_selector("#status:text('No face was found.')")
    assert page.text_content("#problem") == ""


def test_low_confidence_is_unsure(
    browser: Any, serving: Callable[..., str], assets: Path, portrait: Image.Image, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "toy.onnx", {**DESCRIPTION, "threshold": 2.0})
    with watched(browser) as page:
        page.goto(serving(network, assets))
        page.wait_for_selector(LOADED)
        choose(page, png(portrait))
        page.wait_for_selector(".face.unsure")
        assert page.text_content(".label").startswith("Unsure perhaps ")
        assert page.text_content(".box.unsure") == "Unsure"
        assert page.text_content("#status") == "1 face: Unsure."


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


def test_missing_and_forbidden_cameras_are_reported(
    page: Any, launch: Callable[..., Any], serving: Callable[..., str], network: Path, assets: Path
) -> None:
    page.click("#webcam")
    page.wait_for_selector("#problem:text('No camera was found')")
    assert page.get_attribute("#problem", "role") == "alert"
    with watched(launch("--use-fake-device-for-media-stream", "--deny-permission-prompts")) as other:
        other.goto(serving(network, assets))
        other.wait_for_selector(LOADED)
        other.click("#webcam")
        other.wait_for_selector("#problem:text('may not use the camera')")


def test_browsers_without_webassembly_are_told_so(
    browser: Any, serving: Callable[..., str], network: Path, assets: Path
) -> None:
    with watched(browser) as page:
        page.add_init_script("delete window.WebAssembly")
        page.goto(serving(network, assets))
        page.wait_for_selector("#problem:text('does not offer WebAssembly')")
        assert page.is_disabled("#webcam")


@pytest.mark.parametrize("role", sorted(LIBRARIES))
def test_changed_and_missing_libraries_are_not_used(browser: Any, network: Path, assets: Path, role: str) -> None:
    name = LIBRARIES[role].name
    files = site(network, assets)
    for changed in (files[f"assets/{name}"] + b"\n", None):
        files[f"assets/{name}"] = changed  # type: ignore[assignment]
        with server(files, 0) as running, watched(browser) as page:
            threading.Thread(target=running.serve_forever, daemon=True).start()
            page.goto(f"http://127.0.0.1:{running.server_port}/")
            page.wait_for_selector(f"#problem:text('{name} could not be loaded from 127.0.0.1')")
            running.shutdown()


@pytest.mark.parametrize("down", [(), ("cdn.jsdelivr.net",), ("cdn.jsdelivr.net", "unpkg.com")])
def test_libraries_come_from_one_of_two_hosts(
    browser: Any, serving: Callable[..., str], network: Path, assets: Path, portrait: Image.Image, down: tuple[str, ...]
) -> None:
    contents = {f"{library.package}/{library.path}": read(library, assets) for library in LIBRARIES.values()}
    asked = []

    def answer(route: Any) -> None:
        host, _, path = route.request.url.removeprefix("https://").removeprefix("//").partition("/")
        asked.append(host)
        body = contents.get(path.removeprefix("npm/"))
        if host in down or body is None:
            route.abort()
        else:
            route.fulfill(body=body, headers={"Access-Control-Allow-Origin": "*"})

    page = browser.new_page()
    page.route(re.compile("^https:"), answer)
    page.goto(serving(network, None))
    page.wait_for_selector(LOADED)
    if len(down) == 2:
        page.wait_for_selector("#problem:text('could not be loaded from cdn.jsdelivr.net and unpkg.com')")
    else:
        choose(page, png(portrait))
        assert len(results(page)) == 1
        assert "cdn.jsdelivr.net and unpkg.com" in page.text_content("#hosts")
    assert set(asked) == {"cdn.jsdelivr.net", *(["unpkg.com"] if down else [])}
    page.close()


def test_policy_lets_no_picture_out(page: Any, portrait: Image.Image) -> None:
    received = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(self.path)

        def do_POST(self) -> None:
            received.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        choose(page, png(portrait))
        results(page)
        tried = page.evaluate(
            """async (address) => {
                const url = document.getElementById("photo").toDataURL();
                const beacon = () => new Promise((resolve) => {
                    const image = new Image();
                    image.onload = image.onerror = resolve;
                    image.src = address + "image";
                });
                await beacon();
                return fetch(address + "fetch", { method: "POST", body: url, mode: "no-cors" })
                  .then(() => "sent", (error) => error.name);
            }""",
            f"http://127.0.0.1:{other.server_port}/",
        )
        other.shutdown()
    assert tried == "TypeError"
    assert received == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_and_a_keyboard(
    browser: Any, serving: Callable[..., str], network: Path, assets: Path, group: Image.Image, scheme: str
) -> None:
    size = {"width": 380, "height": 720}
    with watched(browser, viewport=size, color_scheme=scheme, reduced_motion="reduce") as page:
        page.goto(serving(network, assets))
        page.wait_for_selector(LOADED)
        assert page.evaluate("document.documentElement.scrollWidth") == 380
        page.keyboard.press("Tab")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": png(group)})
        results(page)
        page.click("summary")
        assert page.evaluate("document.documentElement.scrollWidth") == 380
        for box in page.locator("button").all():
            assert box.bounding_box()["height"] >= 44
        assert page.evaluate("getComputedStyle(document.querySelector('.bar i')).transitionDuration") == "0s"
        nameless = page.evaluate("""() => [...document.querySelectorAll("canvas, video, section, img")]
            .filter((one) => !one.hasAttribute("aria-label") && !one.hasAttribute("alt")).length""")
        assert nameless == 0
