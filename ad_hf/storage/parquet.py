"""Reading of parquet files, which may be anyone's: every error names the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def parquet_errors(name: str | Path) -> Iterator[None]:
    """Turn errors of reading a parquet file into a `ValueError` that names it; a missing one stays that."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{name}: it is no parquet file, or a damaged one: {reason}") from error


@contextmanager
def _opened(path: str | Path, name: str | Path | None = None) -> Iterator[pq.ParquetFile]:
    name = name or path
    if Path(path).exists() and not Path(path).is_file():  # reading a pipe would wait
        raise ValueError(f"{name}: expected a parquet file, and it is not a regular file")
    with parquet_errors(name):
        file = pq.ParquetFile(path, page_checksum_verification=True)
    with file:
        yield file


def read_footer(path: str | Path, name: str | Path | None = None) -> pq.FileMetaData:
    """
    The footer of a parquet file, whose `name` in an error is by default its path.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a damaged file, and one that is not parquet.
    """
    with _opened(path, name) as file:
        return file.metadata


def read_schema(path: str | Path) -> pa.Schema:
    """The Arrow schema of a parquet file; see [`read_footer`] for errors."""
    with _opened(path) as file, parquet_errors(path):
        return file.schema_arrow


def read_table(path: str | Path) -> pa.Table:
    """A parquet file as a whole; see [`read_footer`] for errors."""
    with _opened(path) as file, parquet_errors(path):
        return file.read()


def read_groups(
    path: str | Path, columns: Sequence[str] | None = None, name: str | Path | None = None
) -> Iterator[pa.Table]:
    """The row groups of a parquet file, with all or some columns, which must be there; see [`read_footer`]."""
    name = name or path
    with _opened(path, name) as file:
        with parquet_errors(name):
            names = file.schema_arrow.names
        if missing := [column for column in columns or () if column not in names]:
            raise ValueError(f"{name}: column {missing[0]} is missing, there are {', '.join(names)}")
        for index in range(file.num_row_groups):
            with parquet_errors(name):  # not around the yield: errors of the caller stay as they are
                table = file.read_row_group(index, columns and list(columns))
            yield table
