"""From evaluation rows to the tables of a comparison. No torch; ``lab.figures`` draws from these tables alone.

Not a query language: anything else is asked of ``rows.parquet`` itself, with pandas or duckdb.
"""

from lab.tables.cells import read_rows
from lab.tables.comparison import (
    ALL,
    EQUAL_SQRT_KL,
    UNVERIFIABLE,
    VERIFIABLE,
    Comparison,
    assert_comparable,
    compare,
)
from lab.tables.writing import (
    compact,
    csv_bytes,
    json_bytes,
    records,
    table_digest,
    terminal_table,
    write_bytes,
    write_tables,
)

__all__ = [
    "ALL",
    "EQUAL_SQRT_KL",
    "UNVERIFIABLE",
    "VERIFIABLE",
    "Comparison",
    "assert_comparable",
    "compact",
    "compare",
    "csv_bytes",
    "json_bytes",
    "read_rows",
    "records",
    "table_digest",
    "terminal_table",
    "write_bytes",
    "write_tables",
]
