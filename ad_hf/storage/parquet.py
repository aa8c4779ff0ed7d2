"""Parquet files that may be anyone's: the one place that reads them, so that every error names the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def parquet_errors(name: str | Path) -> Iterator[None]:
    """Whatever goes wrong in reading a parquet file, as a `ValueError` that names it; a missing one stays that."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name}: it is no parquet file, or a damaged one: {reason}") from error


def _open(path: Path, name: str | Path | None) -> pq.ParquetFile:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{name or path}: expected a parquet file, and it is not a regular file")
    return pq.ParquetFile(path, page_checksum_verification=True)


def read_footer(path: str | Path, name: str | Path | None = None) -> pq.FileMetaData:
    """
    The footer of a parquet file.

    Args:
        path (`str` or `Path`):
            The file.
        name (`str`, *optional*):
            What to call it in an error; by default its path.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is no parquet file or a damaged one.
    """
    with parquet_errors(name or path), _open(Path(path), name) as opened:
        return opened.metadata


def read_schema(path: str | Path, name: str | Path | None = None) -> pa.Schema:
    """The Arrow schema of a parquet file; see [`read_footer`] for arguments and errors."""
    with parquet_errors(name or path), _open(Path(path), name) as opened:
        return opened.schema_arrow


def read_groups(
    path: str | Path, columns: Sequence[str] | None = None, name: str | Path | None = None
) -> Iterator[pa.Table]:
    """
    The row groups of a parquet file, one by one, with all or some of its columns. See [`read_footer`] for the rest.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is no parquet file, a damaged one, or lacks one of the columns.
    """
    with parquet_errors(name or path):
        opened = _open(Path(path), name)
    with opened:
        there = opened.schema_arrow.names
        if missing := [column for column in columns or () if column not in there]:
            raise ValueError(f"{name or path}: column {missing[0]} is missing, there are {', '.join(there)}")
        for index in range(opened.num_row_groups):
            with parquet_errors(name or path):  # and not around the yield: what is done with them fails by itself
                table = opened.read_row_group(index, columns=None if columns is None else list(columns))
            yield table


def read_table(path: str | Path, columns: Sequence[str] | None = None, name: str | Path | None = None) -> pa.Table:
    """A parquet file, with all or some of its columns; see [`read_groups`], and [`read_footer`] for the arguments."""
    groups = list(read_groups(path, columns, name))
    if groups:
        return pa.concat_tables(groups)
    empty = read_schema(path, name).empty_table()
    return empty if columns is None else empty.select(list(columns))
