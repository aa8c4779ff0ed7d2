"""The page on which a model learns in a browser: built from an export, and served on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

from ad_hf.export.runtime import runtime_files
from ad_hf.settings import read_json
from ad_hf.storage.files import atomic_folder, refuse_other

PAGE = Path(__file__).parent / "demo"
ENVIRONMENT = "ad_hf/DarkRoom-v0"  # the one that the page draws
MODEL_FILES = ONNX_FILE, DESCRIPTION_FILE = "model.onnx", "model.json"
INDEX = "index.html"


def build_demo(model: str | Path, output_dir: str | Path, *, trust_remote_code: bool = False) -> Path:
    """
    Write the page of a model: static files, which any web server serves from any path.

    Args:
        model (`str` or `Path`):
            Folder that [`~ad_hf.export.onnx_files.export_onnx`] wrote; or a model that is exported first, as for it.
        output_dir (`str` or `Path`):
            Folder of the page, which is replaced.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether what comes along with the model may name any code.

    Returns:
        `Path`: the folder.

    Raises:
        ValueError: for a model of another environment than Dark Room, or of unknown tasks.
        OSError: if there is no model, or the runtime cannot be downloaded.
    """
    output_dir = Path(output_dir)
    refuse_other(output_dir, INDEX)
    with TemporaryDirectory() as temporary:
        exported = Path(model)
        if not (exported / ONNX_FILE).is_file():
            from ad_hf.export.onnx_files import export_onnx  # imports torch

            exported = export_onnx(model, temporary, trust_remote_code=trust_remote_code)
        check_drawable(exported / DESCRIPTION_FILE)
        runtime = runtime_files()
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(output_dir) as folder:
            shutil.copytree(PAGE, folder, dirs_exist_ok=True)
            for name in ("runtime", "model"):
                (folder / name).mkdir()
            for name, content in runtime.items():
                (folder / "runtime" / name).write_bytes(content)
            for name in MODEL_FILES:
                shutil.copyfile(exported / name, folder / "model" / name)
    return output_dir


def check_drawable(description: Path) -> None:
    """Refuse the description of a model that the page cannot show, with a `ValueError`."""
    family = read_json(description).get("family")
    if family is None:
        raise ValueError(f"{description} has no tasks: export a model that lies in the folder of its run")
    if family["env_id"] != ENVIRONMENT:
        raise ValueError(f"the page draws {ENVIRONMENT} alone, and the model is of {family['env_id']}")


def serve(folder: Path, port: int, announce: Callable[[str], None]) -> None:
    """Serve a folder on this machine, at a free port for 0, until Ctrl-C; announces its address first."""
    handler = partial(_QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        announce(f"http://127.0.0.1:{server.server_port}/")
        server.serve_forever()


class _QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".js": "text/javascript"}

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


__all__ = ["build_demo", "serve"]
