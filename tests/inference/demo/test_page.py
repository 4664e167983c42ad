"""The page in a real browser: what a person sees."""

from __future__ import annotations

import base64
import http.server
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fer_lightning.inference.demo.libraries import LIBRARIES, read
from fer_lightning.inference.demo.server import server
from fer_lightning.inference.demo.site import site
from tests.inference.demo.conftest import DESCRIPTION, LOADED, choose, png, results, watched, write_network

pytestmark = pytest.mark.slow


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


def test_the_photo_chosen_last_is_shown(page: Any, portrait: Image.Image) -> None:
    page.evaluate("""() => {
        const decode = window.createImageBitmap;
        window.createImageBitmap = async (file) => {
          if (file.name === "slow.png") await new Promise((resolve) => { setTimeout(resolve, 800); });
          return decode(file);
        };
    }""")
    choose(page, png(portrait), "slow.png")
    choose(page, png(Image.new("RGB", (300, 200), "green")), "fast.png")
    page.wait_for_selector("#status:text('No face was found.')")
    page.wait_for_timeout(1500)
    assert page.text_content("#status") == "No face was found."
    assert page.evaluate("() => document.getElementById('photo').width") == 300


def test_photo_chosen_while_the_networks_load_is_kept(
    browser: Any, serving: Callable[..., str], network: Path, assets: Path, portrait: Image.Image
) -> None:
    with watched(browser) as page:
        held: list[Any] = []
        page.route("**/model.onnx", lambda route: held.append(route))
        with page.expect_request("**/model.onnx"):
            page.goto(serving(network, assets))
        choose(page, png(portrait))
        assert page.is_disabled("#choose")
        held[0].continue_()
        assert len(results(page)) == 1


def test_low_confidence_is_unsure(
    browser: Any, serving: Callable[..., str], assets: Path, portrait: Image.Image, tmp_path: Path
) -> None:
    network = write_network(tmp_path / "toy.onnx", {**DESCRIPTION, "calibration": {"threshold": 2.0}})
    with watched(browser) as page:
        page.goto(serving(network, assets))
        page.wait_for_selector(LOADED)
        choose(page, png(portrait))
        page.wait_for_selector(".face.unsure")
        assert page.text_content(".label").startswith("Unsure perhaps ")
        assert page.text_content(".box.unsure") == "Unsure"
        assert page.text_content("#status") == "1 face: Unsure."


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


def test_message_in_browsers_without_webassembly(
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
