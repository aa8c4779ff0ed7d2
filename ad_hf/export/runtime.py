"""The inference runtime of the page: files of an npm package at one version, verified before they are used."""

from __future__ import annotations

import base64
import gzip
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import cached_assets_path

from ad_hf.storage.files import atomic_path

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# As `npm view onnxruntime-web@1.30.0 dist.integrity` prints it.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
PACKED = "ort.wasm.bin"  # the wasm, compressed: servers of static files often send it as it is


def archive_path() -> Path:
    """Where the package is kept."""
    return cached_assets_path("ad_hf", PACKAGE) / f"{VERSION}.tgz"


def runtime_files() -> dict[str, bytes]:
    """
    The files of the runtime, by name: a script, and its WebAssembly compressed by gzip.

    npm downloads the package once, and it is kept in the cache of assets of `huggingface_hub`.

    Raises:
        OSError: if it is not in the cache and cannot be downloaded.
        ValueError: if it is not the package of the pinned hash.
    """
    archive = archive_path()
    if not archive.is_file():
        content = _download(archive)
        verify(content, f"{PACKAGE} as npm packs it")
        with atomic_path(archive) as temporary:
            temporary.write_bytes(content)
    verify(archive.read_bytes(), archive)
    with tarfile.open(archive) as files:
        script, wasm = (files.extractfile(f"package/dist/{name}").read() for name in (SCRIPT, WASM))  # type: ignore[union-attr]
    return {SCRIPT: script, PACKED: gzip.compress(wasm, mtime=0)}


def _download(archive: Path) -> bytes:
    """The package, by npm, which knows the registry that a machine can reach."""
    command = ["npm", "pack", "--silent", f"{PACKAGE}@{VERSION}"]
    instead = f"where npm cannot, put the file that `{' '.join(command)}` writes elsewhere to {archive}"
    npm = shutil.which("npm")
    if npm is None:
        raise OSError(f"the page needs {PACKAGE} once, which npm downloads: install npm; {instead}")
    with TemporaryDirectory() as folder:
        done = subprocess.run([npm, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=600)
        packed = list(Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            raise OSError(f"npm could not download {PACKAGE} {VERSION}: {done.stderr.strip()[-500:]}; {instead}")
        return packed[0].read_bytes()


def verify(content: bytes, name: str | Path) -> None:
    """Refuse a package whose hash is not the pinned one."""
    algorithm, _, expected = INTEGRITY.partition("-")
    found = base64.b64encode(hashlib.new(algorithm, content).digest()).decode()
    if found != expected:
        raise ValueError(f"{name} is not {PACKAGE} {VERSION}: its {algorithm} is {found}, expected {expected}")


__all__ = ["runtime_files"]
