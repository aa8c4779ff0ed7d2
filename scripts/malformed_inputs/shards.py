"""What is done to the shards of a dataset: their tables, their rows, their bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from malformed_inputs.common import replace_column

# What is done to the table of the shard of the training split, and what has to be named beside the file.
COLUMNS: list[tuple[str, Callable[[pa.Table], pa.Table], str]] = [
    ("no column of rewards", lambda table: table.drop_columns(["rewards"]), "rewards"),
    ("no column of tasks", lambda table: table.drop_columns(["task_id"]), "task_id"),
    (
        "a column of another spelling",
        lambda table: table.rename_columns(
            [name.replace("truncations", "Truncations") for name in table.column_names]
        ),
        "truncations",
    ),
    ("rewards as float16", replace_column("rewards", lambda column: column.cast(pa.list_(pa.float32()))), "rewards"),
    ("rewards as text", replace_column("rewards", lambda column: column.cast(pa.list_(pa.string()))), "rewards"),
    (
        "terminations as numbers",
        replace_column("terminations", lambda column: column.cast(pa.list_(pa.uint8()))),
        "terminations",
    ),
    ("tasks as text", replace_column("task_id", lambda column: column.cast(pa.string())), "task_id"),
    (
        "observations as floats",
        replace_column("observations", lambda column: pa.array([[[1.0, 1.0]]] * len(column))),
        "observations",
    ),
    ("one reward per history", replace_column("rewards", lambda column: pa.array([1.0] * len(column))), "rewards"),
    ("no rows", lambda table: table.slice(0, 0), r"rows|histor"),
]


def put(name: str, index: int, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    """A change of rows: one element of a column of the third row; before it is set to what a function makes of it."""

    def change(rows: list[dict[str, Any]]) -> None:
        rows[2][name][index] = value

    return change


def row(name: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    """A change of rows: what the third one has in a column."""

    def change(rows: list[dict[str, Any]]) -> None:
        rows[2][name] = value(rows[2][name]) if callable(value) else value

    return change


def in_two(row: dict[str, Any], step: int) -> list[dict[str, Any]]:
    """A history as two pieces, cut at the border of an episode."""
    episodes = sum(row["truncations"][:step])
    pieces = []
    for piece, (first, last) in enumerate(((0, step), (step, None))):
        part = {**row, "piece": piece, "start_step": first}
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            part[name] = row[name][first:last]
        part["final_observations"] = row["final_observations"][
            (episodes if piece else 0) : (None if piece else episodes)
        ]
        pieces.append(part)
    return pieces


def pieces(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """A change of rows: the third one in two pieces, of which something is changed."""

    def cut(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        pieces = in_two(rows[2], 36)
        pieces = change(pieces) or pieces
        return [*rows[:2], *pieces, *rows[3:]]

    return cut


def second(name: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    """A change of pieces: what the second one has in a column."""
    return lambda pieces: pieces[1].__setitem__(name, value)


# What only metadata.json, which says how much there is, can tell to be wrong.
SAID = (
    "three histories less than metadata.json says",
    "only the first steps of a history",
    "the first piece alone",
)
ROWS: list[tuple[str, Callable[[list[dict[str, Any]]], Any], str]] = [
    ("an action that there is not", put("actions", 7, 5), r"actions.*5"),
    ("an observation beyond the room", put("observations", 0, [0, 3]), r"observations"),
    ("a reward that is minus infinite", put("rewards", 89, float("-inf")), r"rewards.*inf"),
    ("a reward that float32 cannot hold", put("rewards", 3, -1e39), r"rewards.*1e\+?39"),
    ("an action that is missing", put("actions", 50, None), r"actions.*50"),
    ("an end that is missing", put("truncations", 5, None), r"truncations.*5"),
    ("a history without actions", row("actions", None), r"actions"),
    ("a history without a name", row("history_id", None), r"history_id"),
    ("a history without a task", row("task_id", None), r"task_id"),
    ("a history of a task that there is not", row("task_id", 77), r"task.*77"),
    ("a history of a validation task", row("task_id", 0), r"task.*0"),
    ("a history of a task below none", row("task_id", -5), r"task.*-5"),
    (
        "no steps in all columns",
        lambda rows: [
            {
                **row,
                **{
                    name: []
                    for name in (
                        "observations",
                        "actions",
                        "rewards",
                        "terminations",
                        "truncations",
                        "final_observations",
                    )
                },
            }
            if index == 2
            else row
            for index, row in enumerate(rows)
        ],
        r"rewards.*no steps",
    ),
    ("an action more than steps", row("actions", lambda actions: [*actions, 0]), r"actions.*91"),
    ("an end less than steps", row("truncations", lambda ends: ends[1:]), r"truncations.*89"),
    ("a history twice, side by side", lambda rows: [*rows[:3], *rows[2:]], r"histor"),
    (
        "a history twice, the second under another task",
        lambda rows: [*rows, {**rows[2], "task_id": rows[-1]["task_id"]}],
        r"histor|task",
    ),
    ("three histories less than metadata.json says", lambda rows: rows[3:], r"histor|rows|steps"),
    (
        "only the first steps of a history",
        lambda rows: [
            {
                **row,
                **{
                    name: row[name][:6]
                    for name in ("observations", "actions", "rewards", "terminations", "truncations")
                },
                "final_observations": row["final_observations"][:1],
            }
            if index == 2
            else row
            for index, row in enumerate(rows)
        ],
        r"steps",
    ),
    ("a history that begins at its fifth step", row("start_step", 5), r"start_step"),
    ("a history that begins below 0", row("start_step", -90), r"start_step"),
    ("a piece that begins a step too late", pieces(second("start_step", 37)), r"start_step|piece|follow"),
    (
        "a piece that begins where the one before it does",
        pieces(second("start_step", 0)),
        r"start_step|piece|follow|histor",
    ),
    ("a piece of another task", pieces(second("task_id", 2)), r"task"),
    ("a piece twice", pieces(lambda pieces: [*pieces, pieces[1]]), r"start_step|piece|histor"),
    ("the second piece alone", pieces(lambda pieces: pieces[1:]), r"start_step|piece|histor|steps"),
    ("the first piece alone", pieces(lambda pieces: pieces[:1]), r"piece|histor|steps"),
    ("pieces in the wrong order", pieces(lambda pieces: pieces[::-1]), r"start_step|piece|follow|histor"),
]

BYTES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("nothing in it", lambda data: b""),
    ("its first ten bytes", lambda data: data[:10]),
    ("all but its last byte", lambda data: data[:-1]),
    ("all but its first 100 bytes", lambda data: data[100:]),
    ("its bytes twice", lambda data: data + data[:-4]),
    ("text", lambda data: b"a,b\n1,2\n"),
    ("zeros in its middle", lambda data: data[:2000] + bytes(len(data) - 4000) + data[-2000:]),
    ("a footer that claims another length", lambda data: data[:-8] + b"\xff\xff\xff\x7f" + data[-4:]),
]
