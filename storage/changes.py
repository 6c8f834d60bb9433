"""Changes of a row as data, and the statements that make them: building one costs ten times as much as running it."""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Update, bindparam, case, exists, literal, update
from sqlmodel import col

from storage.tables import RunRow, SessionRow

OF_PRIMARY = frozenset({"status", "message_count", "last_message"})
"""Columns of a session that only its primary thread changes, and no sub-agent's."""

Shape = tuple[tuple[str, ...], tuple[str, ...]]
"""The columns that are set and those that are added to."""


@dataclass
class Changes:
    """Columns to set, and columns to add to. What is set is not added to."""

    set: dict[str, Any] = field(default_factory=dict[str, Any])
    add: dict[str, int] = field(default_factory=dict[str, int])

    def plus(self, column: str, amount: int) -> None:
        self.add[column] = self.add.get(column, 0) + amount

    @property
    def shape(self) -> Shape:
        return tuple(self.set), tuple(column for column in self.add if column not in self.set)

    @property
    def parameters(self) -> dict[str, Any]:
        """For a statement of this shape."""
        return {f"new_{column}": value for column, value in {**self.add, **self.set}.items()}


def updating(row: type[RunRow] | type[SessionRow], shape: Shape) -> Update:
    """Update the row whose id is the parameter `row_id`; of a session, for the run that is the parameter `by_run`."""
    to_set, to_add = shape
    values: dict[str, Any] = {column: bindparam(f"new_{column}") for column in to_set}
    values |= {column: _before(row, column) + bindparam(f"new_{column}") for column in to_add}
    if row is SessionRow:
        subagent = exists().where(col(RunRow.id) == bindparam("by_run"), col(RunRow.thread_id).is_not(None))
        for column in OF_PRIMARY & values.keys():
            old = getattr(SessionRow, column)
            new = old + bindparam(f"new_{column}") if column in to_add else bindparam(f"new_{column}", type_=old.type)
            values[column] = case((subagent, old), else_=new)
    return update(row).where(col(row.id) == bindparam("row_id")).values(values)


def _before(row: type[RunRow] | type[SessionRow], column: str) -> ColumnElement[int]:
    before = getattr(row, column)
    if column != "cost_nano_usd":
        return before
    # Null plus anything is null: one call of unknown price makes the sum unknown, and no zero is ever shown for it.
    return case((col(row.model_call_count) == 0, literal(0)), else_=before)
