"""`fer-lightning demo`: the page with any model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from fer_lightning.errors import printable
from fer_lightning.inference import zoo
from fer_lightning.inference.demo import server, site
from fer_lightning.inference.load import load


def show(
    models: Sequence[str] | None,
    *,
    build: Path | None = None,
    assets: Path | None = None,
    port: int = server.PORT,
    open_browser: bool = True,
    trust: bool = False,
) -> None:
    """Serve the page, or write it to a folder.

    Args:
        models: see `fer_lightning.inference.load.load_model`; None for the default one. What is not an ONNX file is
            exported to one first.
        build: folder to write the page to instead of serving it.
        assets: folder of the libraries; None to let the page load them from a CDN.
        port: of the server.
        open_browser: show the page in the user's browser.
        trust: allow a run's network that is not on the allow-list.

    Raises:
        UserError: as `load_model`, `export`, `site.build` and `server.serve` do.
    """
    paths = [zoo.find(model) for model in models or [zoo.DEFAULT]]
    with tempfile.TemporaryDirectory() as folder:
        if len(paths) == 1 and paths[0].suffix == ".onnx":
            file = paths[0]
        else:
            from fer_lightning.inference.export import export

            print("exporting the network for the browser …", flush=True)
            file = Path(folder) / "model.onnx"
            name = load(paths[0], accelerator="cpu", trust=trust).name if len(paths) == 1 else f"{len(paths)} models"
            export(paths, file, name=name, measure=False, trust=trust)
        if build is None:
            server.serve(file, port=port, assets=assets, open_browser=open_browser)
        else:
            site.build(file, build, assets=assets)
            print(f"page     {printable(build / 'index.html')}")
