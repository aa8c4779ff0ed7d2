"""Moving pictures as files: GIF, and H.264 in MP4, which needs the package av."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from ad_hf.storage.files import atomic_path

FORMATS = ("gif", "mp4")
LAST_PICTURE_MILLISECONDS = 1000  # longer, so that people see the end before the replay begins anew
PALETTE_SAMPLES = 8  # pictures whose colours make the palette of a GIF


def check_formats(formats: Sequence[str]) -> None:
    """Refuse other formats than `"gif"` and `"mp4"`, and `"mp4"` without the package av, before minutes of rollout."""
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"unknown video format {name!r}: expected {' or '.join(FORMATS)}")
    if "mp4" in formats:
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ImportError(f'MP4 files need the package av: pip install "ad_hf[video]" ({error})') from error


def write_video(path: str | Path, pictures: Sequence[Image.Image], milliseconds: int) -> None:
    """
    Write RGB pictures of one size, even in width and height (H.264 halves the resolution of colours), as a GIF or an
    MP4, by the path's suffix, whole or not at all. Each is shown for some milliseconds, the last one for a second.
    """
    with atomic_path(path) as temporary:
        if Path(path).suffix == ".mp4":
            _write_mp4(temporary, pictures, milliseconds)
        else:
            write_gif(temporary, pictures, [*[milliseconds] * (len(pictures) - 1), LAST_PICTURE_MILLISECONDS])


def write_gif(path: Path, pictures: Sequence[Image.Image], milliseconds: Sequence[int]) -> None:
    """Write RGB pictures of one size as a GIF, each of which is shown for some milliseconds."""
    # With one palette for all, and without dithering, pixels at rest are the same in every picture, and a GIF stores
    # only those that change.
    width, height = pictures[0].size
    samples = pictures[:: -(-len(pictures) // PALETTE_SAMPLES)]
    montage = Image.new("RGB", (width, height * len(samples)))
    for index, picture in enumerate(samples):
        montage.paste(picture, (0, index * height))
    palette = montage.quantize(256)
    first, *others = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    # Pillow finds a near colour, not the nearest one. In the paper, the colour of the corner, a shade off would show.
    paper: Any = first.getpixel((0, 0))
    colours: Any = first.getpalette()
    colours[3 * paper : 3 * paper + 3] = pictures[0].getpixel((0, 0))
    for picture in (first, *others):
        picture.putpalette(colours)
    first.save(path, format="GIF", save_all=True, append_images=others, duration=list(milliseconds), loop=0)


def _write_mp4(path: Path, pictures: Sequence[Image.Image], milliseconds: int) -> None:
    import av
    from av.video.reformatter import Colorspace

    lasting = [*pictures, *[pictures[-1]] * (LAST_PICTURE_MILLISECONDS // milliseconds - 1)]
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:  # plays while it is loaded
        stream = container.add_stream("libx264", rate=Fraction(1000, milliseconds), options={"crf": "18"})
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"  # the one layout that all browsers play
        stream.colorspace = stream.color_primaries = stream.color_trc = Colorspace.ITU709  # lest players guess
        for picture in lasting:
            frame = av.VideoFrame.from_image(picture)
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
