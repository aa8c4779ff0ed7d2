"""Frames: image observations, stored as one compressed binary per piece of a history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from gymnasium import spaces

FRAME_CODEC = pa.Codec("zstd")


def has_frames(space: spaces.Space) -> bool:
    """Whether a space holds images: a Box of bytes of shape (height, width, channels)."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def compress_frames(frames: np.ndarray) -> bytes:
    """Frames (num_frames, height, width, channels) as one zstd frame; no frames are no bytes."""
    return FRAME_CODEC.compress(np.ascontiguousarray(frames), asbytes=True) if len(frames) else b""


def decompress_frames(data: bytes | pa.Buffer, num_frames: int, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of [`compress_frames`]; a `ValueError` unless the data holds so many frames of this shape."""
    size = num_frames * int(np.prod(shape))
    try:
        plain = FRAME_CODEC.decompress(data, decompressed_size=size) if size else b""
    except OSError as error:
        raise ValueError(f"expected {num_frames} frames of shape {shape}, zstd-compressed: {error}") from error
    return np.frombuffer(plain, dtype=np.uint8).reshape(num_frames, *shape)


class FramePieces:
    """
    Steps of compressed pieces by their numbers: it decodes only the pieces of a batch at a time.

    Each piece is a binary with a length (num_pieces,) in steps and a name for errors; `shape` is that of a frame.
    """

    def __init__(
        self, pieces: pa.ChunkedArray, lengths: np.ndarray, shape: tuple[int, ...], names: Sequence[Any]
    ) -> None:
        self._pieces, self._lengths, self._names, self.shape = pieces, lengths, names, shape
        self._starts = np.cumsum(lengths) - lengths

    def take(self, steps: np.ndarray) -> np.ndarray:
        """The frames (num_steps, height, width, channels) of steps (num_steps,), numbered over all pieces."""
        frames = np.empty((len(steps), *self.shape), dtype=np.uint8)
        owners = np.searchsorted(self._starts, steps, side="right") - 1
        for owner in np.unique(owners):
            to = np.flatnonzero(owners == owner)
            try:
                data = self._pieces[int(owner)].as_buffer()
                piece = decompress_frames(data, int(self._lengths[owner]), self.shape)
            except ValueError as error:
                raise ValueError(f"{self._names[int(owner)]}, column observations: {error}") from error
            first = steps[to] - self._starts[owner]
            # Steps mostly follow each other: copied run by run, a frame is moved once.
            breaks = np.flatnonzero((np.diff(first) != 1) | (np.diff(to) != 1)) + 1
            for start, stop in zip(np.append(0, breaks), np.append(breaks, len(first))):
                frames[to[start] : to[start] + stop - start] = piece[first[start] : first[start] + stop - start]
        return frames
