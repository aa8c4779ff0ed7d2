"""Moving pictures as files: read back, they are what was written."""

import sys

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from ad_hf.evaluation.video import LAST_PICTURE_MILLISECONDS, check_formats, write_video

SIZE = (202, 110)
PAPER, MOVING, RESTING = (255, 255, 255), (94, 201, 98), (253, 174, 97)


@pytest.fixture
def pictures():
    """A square that moves across paper, over one that does not."""
    made = []
    for step in range(20):
        picture = Image.new("RGB", SIZE, PAPER)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((20, 60, 59, 99), fill=RESTING)
        draw.rectangle((6 * step, 10, 6 * step + 39, 49), fill=MOVING)
        made.append(picture)
    return made


def read_mp4(path):
    """The pictures of an MP4, and its stream's properties."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        codec, rate, seconds = stream.codec_context, float(stream.average_rate), container.duration / 1e6
        pictures = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
        return pictures, (codec.name, codec.pix_fmt, rate, seconds)


@pytest.mark.parametrize("milliseconds", [20, 250])
def test_an_mp4_holds_the_pictures_and_stands_still_at_the_end(tmp_path, pictures, milliseconds):
    write_video(tmp_path / "replay.mp4", pictures, milliseconds)
    decoded, properties = read_mp4(tmp_path / "replay.mp4")
    content = (tmp_path / "replay.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")  # a player can start before it has all
    repeats = LAST_PICTURE_MILLISECONDS // milliseconds
    assert len(decoded) == len(pictures) - 1 + repeats
    seconds = pytest.approx(len(decoded) * milliseconds / 1000, abs=0.001)
    assert properties == ("h264", "yuv420p", 1000 / milliseconds, seconds)
    expected = [*pictures, *[pictures[-1]] * (repeats - 1)]
    for seen, picture in zip(decoded, expected, strict=True):
        assert seen.shape == (SIZE[1], SIZE[0], 3)
        assert np.abs(seen - np.asarray(picture)).mean() < 2
    for (x, y), colour in (((15, 30), MOVING), ((40, 80), RESTING), ((190, 100), PAPER)):
        assert np.abs(decoded[0][y, x] - colour).max() <= 4  # of the very colours: the matrix is said, not guessed


def test_both_formats_show_the_same(tmp_path, pictures):
    for name in ("replay.gif", "replay.mp4"):
        write_video(tmp_path / name, pictures, 100)
    decoded, _ = read_mp4(tmp_path / "replay.mp4")
    with Image.open(tmp_path / "replay.gif") as gif:
        assert gif.n_frames == len(pictures)
        assert gif.info["loop"] == 0  # for ever
        for index in range(gif.n_frames):
            gif.seek(index)
            assert gif.info["duration"] == (LAST_PICTURE_MILLISECONDS if index == len(pictures) - 1 else 100)
            assert np.abs(np.asarray(gif.convert("RGB")) - decoded[index]).mean() < 2


def test_the_paper_of_a_gif_is_white_however_many_colours_there_are(tmp_path):
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(5):
        pixels = rng.integers(200, 256, (64, 64, 3), dtype=np.uint8)
        pixels[:8] = 255
        pictures.append(Image.fromarray(pixels))
    write_video(tmp_path / "replay.gif", pictures, 100)
    with Image.open(tmp_path / "replay.gif") as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            assert (np.asarray(gif.convert("RGB"))[:8] == 255).all()


def test_what_does_not_move_takes_no_room_in_a_gif(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(200, 200, 3), dtype=np.uint8)
    pictures = []
    for step in range(40):
        pictures.append(Image.fromarray(pixels))
        ImageDraw.Draw(pictures[-1]).rectangle((4 * step, 0, 4 * step + 9, 9), fill=MOVING)
    write_video(tmp_path / "one.gif", pictures[:1], 100)
    write_video(tmp_path / "all.gif", pictures, 100)
    assert (tmp_path / "all.gif").stat().st_size < 2 * (tmp_path / "one.gif").stat().st_size


def test_a_file_is_whole_or_not_there(tmp_path, pictures):
    for name in ("replay.gif", "replay.mp4"):
        with pytest.raises(AttributeError):
            write_video(tmp_path / name, [*pictures, None], 100)
    assert list(tmp_path.iterdir()) == []


def test_formats_that_cannot_be_written_are_told_beforehand(monkeypatch):
    check_formats(["gif", "mp4"])
    with pytest.raises(ValueError, match="unknown video format 'avi': expected gif or mp4"):
        check_formats(["gif", "avi"])
    monkeypatch.setitem(sys.modules, "av", None)  # as if it were not installed
    check_formats(["gif"])
    with pytest.raises(ImportError, match=r'MP4 files need the package av: pip install "ad_hf\[video\]"'):
        check_formats(["gif", "mp4"])
