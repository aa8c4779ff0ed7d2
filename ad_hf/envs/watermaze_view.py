"""Pictures of the water maze: first-person frames of many pools at once, and a map for human eyes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

POOL_RADIUS, EYE_HEIGHT, WALL_HEIGHT = 1.0, 0.2, 0.6
FIELD_OF_VIEW = np.pi / 2  # of the columns, from the leftmost to the rightmost
CLOSEST, FARTHEST = 0.07, 1.91  # depths of the wall from where the agent can be

# A table holds a column of a frame for each piece of the wall and each depth.
WALL_PIECES, DEPTHS = 256, 96
WALL_ROWS = 16  # of the wall's texture
CHUNK_PIXELS = 64_000  # of a look-up: they fit a core's cache

SKY, WATER_FAR, WATER_NEAR = (188, 214, 236), (126, 190, 202), (38, 98, 124)
PLATFORM, AGENT = (94, 201, 98), (253, 174, 97)
# Eight landmarks around the wall, from behind (-x) counter-clockwise: colours of the ground and of the figure on it.
LANDMARKS = (
    ((202, 52, 51), (250, 238, 214)),
    ((36, 75, 160), (250, 208, 60)),
    ((244, 244, 240), (30, 30, 34)),
    ((30, 132, 73), (240, 150, 200)),
    ((240, 133, 25), (40, 40, 110)),
    ((118, 62, 158), (170, 230, 80)),
    ((92, 64, 48), (90, 220, 230)),
    ((236, 200, 30), (190, 30, 90)),
)


def _figures() -> list[np.ndarray]:
    """Masks (`WALL_ROWS`, pieces of a landmark) of the landmarks' figures, rows from the top."""
    rows, pieces = WALL_ROWS, WALL_PIECES // len(LANDMARKS)
    down, along = np.meshgrid(np.arange(rows) / rows, np.arange(pieces) / pieces, indexing="ij")
    up, across = 0.5 - down, along - 0.5
    return [
        np.hypot(up, across) < 0.33,  # disc
        along % 0.5 < 0.25,  # stripes
        (along % 0.5 < 0.25) ^ (down % 0.5 < 0.25),  # checkers
        np.abs(across) < 0.45 * down,  # triangle
        down % 0.5 < 0.25,  # bands
        (np.abs(across) < 0.12) | (np.abs(up) < 0.15),  # cross
        (along + 0.5 * down) % 0.5 < 0.25,  # slanting stripes
        np.maximum(np.abs(up), np.abs(across)) > 0.3,  # frame
    ]


@lru_cache
def wall_texture() -> np.ndarray:
    """Colours of the wall (`WALL_ROWS`, `WALL_PIECES`, 3) in float32, from the top, from -x counter-clockwise."""
    landmarks = [
        np.where(figure[..., None], colour, ground).astype(np.float32)
        for figure, (ground, colour) in zip(_figures(), LANDMARKS, strict=True)
    ]
    return np.concatenate(landmarks, axis=1)


def _depth_scale() -> float:
    """Classes of depth per unit of its logarithm."""
    return DEPTHS / np.log(FARTHEST / CLOSEST)


@lru_cache(maxsize=4)
def column_table(height: int, width: int) -> np.ndarray:
    """
    Every column that a frame of `height` x `width` pixels can have, as (`DEPTHS` * `WALL_PIECES`, `height` * 3).

    A pixel is the average over its area, so that small frames, too, tell small differences.
    """
    focal_length = width / 2 / np.tan(FIELD_OF_VIEW / 2)
    edges = (np.arange(height + 1) - height / 2) / focal_length  # of the rows, as slopes of the view downwards
    texture = wall_texture()
    table = np.empty((DEPTHS, WALL_PIECES, height, 3), dtype=np.uint8)
    nearness = np.clip(edges[1:] / edges[-1], 0, 1)[:, None]
    water = np.asarray(WATER_FAR) * (1 - nearness) + np.asarray(WATER_NEAR) * nearness  # (height, 3)
    for index, depth in enumerate(CLOSEST * np.exp((np.arange(DEPTHS) + 0.5) / _depth_scale())):
        # In units of the texture's rows: sky lies above its first, water below its last.
        covered = (edges * depth + WALL_HEIGHT - EYE_HEIGHT) * WALL_ROWS / WALL_HEIGHT
        size = covered[1] - covered[0]
        rows = np.arange(WALL_ROWS)
        overlap = np.minimum(covered[1:, None], rows + 1) - np.maximum(covered[:-1, None], rows)
        wall = np.clip(overlap, 0, None) / size  # (height, WALL_ROWS)
        sky = np.clip(-covered[:-1], 0, size)[:, None] / size  # (height, 1)
        background = sky * np.asarray(SKY) + np.clip(1 - sky - wall.sum(axis=1, keepdims=True), 0, 1) * water
        pieces = round(depth / focal_length * WALL_PIECES / (4 * np.pi))  # covered by a pixel, to each side of its own
        blurred = np.mean([np.roll(texture, shift, axis=1) for shift in range(-pieces, pieces + 1)], axis=0)
        table[index] = np.rint(np.tensordot(wall, blurred, axes=1) + background[:, None]).swapaxes(0, 1)
    table.flags.writeable = False
    return table.reshape(DEPTHS * WALL_PIECES, height * 3)


def _view_columns(positions: np.ndarray, headings: np.ndarray, width: int) -> np.ndarray:
    """Rows (number, width) of the column table in the views from positions (number, 2) with headings (number,)."""
    across = (1 - (2 * np.arange(width, dtype=np.float32) + 1) / width) * np.float32(np.tan(FIELD_OF_VIEW / 2))
    ahead = 1 / np.sqrt(1 + across * across)  # the ray of a column, relative to the heading
    left = across * ahead
    x, y = positions.astype(np.float32).T[:, :, None]
    cosine, sine = np.cos(headings, dtype=np.float32)[:, None], np.sin(headings, dtype=np.float32)[:, None]
    ray_x, ray_y = cosine * ahead - sine * left, sine * ahead + cosine * left
    along = x * ray_x + y * ray_y
    distance = np.sqrt(along * along + (POOL_RADIUS**2 - x * x - y * y)) - along
    angle = np.arctan2(y + distance * ray_y, x + distance * ray_x) + np.float32(np.pi)
    piece = (angle * np.float32(WALL_PIECES / (2 * np.pi))).astype(np.intp) % WALL_PIECES
    depth = np.log(distance * ahead * np.float32(1 / CLOSEST)) * np.float32(_depth_scale())
    return np.clip(depth.astype(np.intp), 0, DEPTHS - 1) * WALL_PIECES + piece


def draw_views(positions: np.ndarray, headings: np.ndarray, height: int, width: int) -> np.ndarray:
    """
    First-person frames (number, height, width, 3) of pools around (0, 0), from positions (number, 2) with headings
    (number,), in radians from the x axis counter-clockwise.
    """
    table = column_table(height, width)
    frames = np.empty((len(positions), height, width, 3), dtype=np.uint8)
    size = max(1, CHUNK_PIXELS // (height * width))
    for start in range(0, len(positions), size):
        chunk = slice(start, start + size)
        rows = _view_columns(positions[chunk], headings[chunk], width)
        columns = table.take(rows, axis=0).reshape(*rows.shape, height, 3)
        for channel in range(3):  # three copies of single bytes take a third of the time of one of triples
            frames[chunk, ..., channel] = columns[..., channel].swapaxes(1, 2)
    return frames


def draw_map(
    platform: np.ndarray, platform_radius: float, position: np.ndarray, heading: float, size: int
) -> np.ndarray:
    """A map (size, size, 3) of a pool with its platform, the agent and a line to where it looks; y points up."""
    x, y = np.meshgrid((np.arange(size) + 0.5) / size * 2.4 - 1.2, 1.2 - (np.arange(size) + 0.5) / size * 2.4)
    frame = np.full((size, size, 3), SKY, dtype=np.uint8)
    piece = ((np.arctan2(y, x) + np.pi) * (WALL_PIECES / (2 * np.pi))).astype(int) % WALL_PIECES
    row = ((1.15 - np.hypot(x, y)) / 0.15 * WALL_ROWS).astype(int).clip(0, WALL_ROWS - 1)
    wall = np.hypot(x, y) < 1.15
    frame[wall] = wall_texture()[row, piece][wall]
    frame[np.hypot(x, y) < POOL_RADIUS] = WATER_FAR
    frame[np.hypot(x - platform[0], y - platform[1]) < platform_radius] = PLATFORM
    ahead = (x - position[0]) * np.cos(heading) + (y - position[1]) * np.sin(heading)
    left = (y - position[1]) * np.cos(heading) - (x - position[0]) * np.sin(heading)
    frame[(np.hypot(ahead, left) < 0.07) | ((np.abs(left) < 0.02) & (ahead > 0) & (ahead < 0.2))] = AGENT
    return frame
