"""The ledger's table and its questions, in the SQL that SQLite and PostgreSQL share."""

from __future__ import annotations

from typing import Final

from hub.broker.usage import MOST_NANOS, MOST_TOKENS, UsageRow, name
from hub.ledger import GROUPS, Query

COLUMNS: Final = UsageRow.__struct_fields__

CREATE: Final = (
    """CREATE TABLE IF NOT EXISTS headrace_usage (
  id TEXT PRIMARY KEY,
  stream TEXT NOT NULL,
  org TEXT NOT NULL,
  "user" TEXT NOT NULL,
  attempt BIGINT NOT NULL,
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  outcome TEXT NOT NULL,
  ended_ms BIGINT NOT NULL,
  started_ms BIGINT NOT NULL,
  input_tokens BIGINT NOT NULL,
  output_tokens BIGINT NOT NULL,
  cached_tokens BIGINT NOT NULL,
  cache_write_tokens BIGINT NOT NULL,
  reasoning_tokens BIGINT NOT NULL,
  cost_nanos BIGINT,
  estimated BOOLEAN NOT NULL
)""",
    "CREATE INDEX IF NOT EXISTS headrace_usage_ended ON headrace_usage (ended_ms)",
    "CREATE INDEX IF NOT EXISTS headrace_usage_org ON headrace_usage (org, ended_ms)",
)

_NAMES: Final = {
    "user": '"user"',
    "org": "org",
    "model": "provider || '/' || model",
    "day": "ended_ms / 86400000",
}


def insert(marks: list[str]) -> str:
    """`marks` are the driver's placeholders, one for each column."""
    names = ", ".join(f'"{column}"' for column in COLUMNS)
    changes = ", ".join(f'"{column}" = excluded."{column}"' for column in COLUMNS[1:])
    return (
        f"INSERT INTO headrace_usage ({names}) VALUES ({', '.join(marks)}) ON CONFLICT (id) DO UPDATE SET {changes} "
        "WHERE headrace_usage.estimated AND (NOT excluded.estimated OR "
        "(headrace_usage.outcome = 'lost' AND excluded.outcome <> 'lost'))"
    )


def values(row: UsageRow) -> tuple[object, ...]:
    """What both databases take, whatever the row says: one that is refused would hold up all behind it."""
    return tuple(_value(column, getattr(row, column)) for column in COLUMNS)


def _value(column: str, value: object) -> object:
    if isinstance(value, str):
        return name(value)
    if isinstance(value, int) and not isinstance(value, bool):
        most = MOST_NANOS if column.endswith(("_nanos", "_ms")) else MOST_TOKENS
        return min(max(value, 0), most)
    return value


def totals(query: Query, marks: list[str]) -> tuple[str, list[object]]:
    """The question and its arguments; `marks` are the driver's first four placeholders."""
    wheres = [f"ended_ms >= {marks[0]}", f"ended_ms < {marks[1]}"]
    arguments: list[object] = [query.since_ms, query.until_ms]
    for column, value in (("org", query.org), ('"user"', query.user)):
        if value is not None:
            wheres.append(f"{column} = {marks[len(arguments)]}")
            arguments.append(value)
    name = _NAMES[query.by]
    return (
        f"SELECT {name} AS name, COUNT(*), SUM(input_tokens), SUM(output_tokens), SUM(cached_tokens), "
        "COALESCE(SUM(cost_nanos), 0), SUM(CASE WHEN cost_nanos IS NULL THEN 1 ELSE 0 END), "
        "SUM(CASE WHEN estimated THEN 1 ELSE 0 END) "
        f"FROM headrace_usage WHERE {' AND '.join(wheres)} GROUP BY 1 ORDER BY 6 DESC, 2 DESC, 1 LIMIT {GROUPS}",
        arguments,
    )
