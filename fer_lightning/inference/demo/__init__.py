"""The demo: a static page that finds faces and their expressions in the browser, served locally or built for a site."""

from fer_lightning.inference.demo.server import serve
from fer_lightning.inference.demo.site import build

__all__ = ["build", "serve"]
