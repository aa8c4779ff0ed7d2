"""The inference runtime of the page: files of an npm package at one version, verified before they are used."""

from __future__ import annotations

import base64
import gzip
import hashlib
import tarfile
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from huggingface_hub import cached_assets_path

from ad_hf.storage.files import atomic_path

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# As `npm view onnxruntime-web@1.30.0 dist.integrity` prints it.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
URL = f"https://registry.npmjs.org/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
PACKED = "ort.wasm.bin"  # the wasm, compressed: servers of static files often send it as it is


def runtime_files() -> dict[str, bytes]:
    """
    The files of the runtime, by name: a script, and its WebAssembly compressed by gzip.

    The package is downloaded once and kept in the cache of assets of `huggingface_hub`.

    Raises:
        OSError: if it is not in the cache and cannot be downloaded.
        ValueError: if it is not the package of the pinned hash.
    """
    archive = cached_assets_path("ad_hf", PACKAGE) / f"{VERSION}.tgz"
    if not archive.is_file():
        try:
            with urlopen(URL, timeout=60) as answer:
                content = answer.read()
        except (URLError, TimeoutError) as error:
            raise OSError(
                f"{URL} cannot be downloaded ({error}): the page needs it once; put the file to {archive} where there "
                "is no network"
            ) from error
        verify(content, URL)
        with atomic_path(archive) as temporary:
            temporary.write_bytes(content)
    verify(archive.read_bytes(), archive)
    with tarfile.open(archive) as files:
        script, wasm = (files.extractfile(f"package/dist/{name}").read() for name in (SCRIPT, WASM))  # type: ignore[union-attr]
    return {SCRIPT: script, PACKED: gzip.compress(wasm, mtime=0)}


def verify(content: bytes, name: str | Path) -> None:
    """Refuse a package whose hash is not the pinned one."""
    algorithm, _, expected = INTEGRITY.partition("-")
    found = base64.b64encode(hashlib.new(algorithm, content).digest()).decode()
    if found != expected:
        raise ValueError(f"{name} is not {PACKAGE} {VERSION}: its {algorithm} is {found}, expected {expected}")


__all__ = ["runtime_files"]
