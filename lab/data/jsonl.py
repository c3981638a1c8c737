r"""Records <-> JSON lines: one object a line, ASCII with \u escapes, so that NUL, RTL marks, lone surrogates, CR and LF
in texts come back exactly and no editor or `splitlines` can cut a record in two.

Every error is a JsonlError naming file, 1-based line, key and value. `.jsonl`, `.jsonl.gz`, `.parquet` and `.json` (one
list of objects, all at once) are read; in the last two "line" means the item. `.jsonl` is written, atomically.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import json
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lab.records import Completion, Demonstration, Pair, Prompt

MAX_ROW_BYTES = 16 << 20
PARQUET_BATCH = 256
"""Rows of a Parquet file that are in memory as Python objects at one time."""
Record = TypeVar("Record")
Row = dict[str, Any]
_SKIPPED = object()
_SPLIT_SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class JsonlError(ValueError):
    """Bad data in a file; the message starts with `path:line:`."""


Skip = Callable[[int, JsonlError], None]
"""What to do with a row that cannot be read: it is given the line and the error, and raises that or returns."""


# ---------------------------------------------------------------- rows


def read_rows(path: Path, max_row_bytes: int = MAX_ROW_BYTES, skip: Skip | None = None) -> Iterator[tuple[int, Row]]:
    """(line number, object) of each row, streaming (but for ``.json``). Blank lines are skipped.

    Raises JsonlError for a wrong path, a file without rows, and rows that are too large, not UTF-8, not JSON (NaN is
    not JSON) or not objects; such rows go to ``skip``, where it is given, with the error.
    """
    path = Path(path)
    _check_path(path)
    if path.suffix == ".json":
        rows = _json_items(path)
    elif path.suffix == ".parquet":
        rows = _parquet_rows(path)
    elif path.suffix == ".jsonl" or path.name.endswith(".jsonl.gz"):
        rows = _lines(path, max_row_bytes, skip or _refuse)
    else:
        raise JsonlError(f"{path}: expected a .jsonl, .jsonl.gz, .json or .parquet file")
    empty = True
    for line, value in rows:
        empty = False
        if isinstance(value, dict):
            yield line, value
        elif value is not _SKIPPED:
            (skip or _refuse)(line, JsonlError(f"{path}:{line}: expected an object, got {shorten(value)}"))
    if empty:
        raise JsonlError(f"{path}: the file has no rows")


def _refuse(line: int, error: JsonlError) -> None:
    raise error from None


def encode_row(row: Mapping[str, Any]) -> bytes:
    """A row as one line of ASCII, its newline included.

    Raises ValueError for NaN and infinities, and for a text in which two code units of one character stand apart (a
    high surrogate before a low one, as wrongly decoded UTF-16 has): JSON cannot tell them from the character.
    """
    line = _ENCODER.encode(row)
    if "\\ud" in line:  # no character beyond 16 bits, no surrogate: nothing to look for
        _check_text(row)
    return line.encode("ascii") + b"\n"


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one line a row and return how many. The file appears whole or not at all. Raises as ``encode_row``."""
    return write_lines(path, map(encode_row, rows))


def write_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Write lines that ``encode_row`` made and return how many. The file appears whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    count = 0
    try:
        with open(partial, "wb") as file:
            for line in lines:
                file.write(line)
                count += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    return count


def text_at(path: Path, line: int, row: Mapping[str, Any], key: str) -> str:
    """`row[key]` as a text. Raises JsonlError where it is missing or something else."""
    value = value_at(path, line, row, key)
    if not isinstance(value, str):
        raise JsonlError(f"{path}:{line}: key '{key}': expected a string, got {shorten(value)}")
    return value


def shorten(value: object) -> str:
    """A value as an error message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---------------------------------------------------------------- records


def write_records(path: Path, records: Iterable[Prompt | Pair | Demonstration]) -> int:
    """Write prompts, pairs or demonstrations, one a line; returns how many."""
    return write_rows(path, (_to_row(record) for record in records))


def encode_record(record: Prompt | Pair | Demonstration) -> bytes:
    """A record as ``write_records`` writes it: one line, its newline included."""
    return encode_row(_to_row(record))


def decode_pair(path: Path, line: int, data: bytes) -> Pair:
    """The pair of one line that ``encode_record`` made. Raises JsonlError naming ``path`` and ``line``."""
    return _pair(path, line, _decode(path, line, data))


def write_samples(path: Path, samples: Iterable[tuple[Prompt, Completion]]) -> int:
    """Write completions with their prompts, one a line; returns how many."""
    return write_rows(
        path,
        (
            {"prompt": _to_row(prompt), "sample": one.sample, "text": one.text, "length": one.length,
             "truncated": one.truncated}
            for prompt, one in samples
        ),
    )  # fmt: skip


def read_samples(path: Path) -> list[tuple[Prompt, Completion]]:
    """The completions of a file that `write_samples` wrote. Raises JsonlError."""
    return list(_read(path, _sample))


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file that `write_records` wrote. Raises JsonlError."""
    return list(_read(path, _prompt))


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file that `write_records` wrote. Raises JsonlError."""
    return list(_read(path, _pair))


def read_demonstrations(path: Path) -> list[Demonstration]:
    """The demonstrations of a file that `write_records` wrote. Raises JsonlError."""
    return list(_read(path, _demonstration))


def _read(path: Path, build: Callable[[Path, int, Mapping[str, Any]], Record]) -> Iterator[Record]:
    path = Path(path)
    for line, row in read_rows(path):
        yield build(path, line, row)


def _to_row(record: Prompt | Pair | Demonstration) -> dict[str, Any]:
    match record:
        case Prompt():
            return {"text": record.text, "domain": record.domain, "level": record.level, "gold": dict(record.gold)}
        case Demonstration():
            return {"prompt": _to_row(record.prompt), "completion": record.completion}
        case Pair():
            return {
                "prompt": _to_row(record.prompt),
                "chosen": record.chosen,
                "rejected": record.rejected,
                "annotator": record.annotator,
                "chosen_truncated": record.chosen_truncated,
                "rejected_truncated": record.rejected_truncated,
                "strength": record.strength,
            }


def _prompt(path: Path, line: int, row: Mapping[str, Any]) -> Prompt:
    _check_keys(path, line, row, ("text", "domain", "level", "gold"))
    level, gold = value_at(path, line, row, "level"), value_at(path, line, row, "gold")
    if isinstance(level, bool) or not isinstance(level, int):
        raise JsonlError(f"{path}:{line}: key 'level': expected an integer, got {shorten(level)}")
    if not isinstance(gold, dict):
        raise JsonlError(f"{path}:{line}: key 'gold': expected an object, got {shorten(gold)}")
    return Prompt(text_at(path, line, row, "text"), text_at(path, line, row, "domain"), level, gold)


def prompt_at(path: Path, line: int, row: Mapping[str, Any]) -> Prompt:
    """The prompt under `row["prompt"]`. Raises JsonlError where it is missing or not one."""
    prompt = value_at(path, line, row, "prompt")
    if not isinstance(prompt, dict):
        raise JsonlError(f"{path}:{line}: key 'prompt': expected an object, got {shorten(prompt)}")
    return _prompt(path, line, prompt)


def _demonstration(path: Path, line: int, row: Mapping[str, Any]) -> Demonstration:
    _check_keys(path, line, row, ("prompt", "completion"))
    return Demonstration(prompt_at(path, line, row), text_at(path, line, row, "completion"))


def _pair(path: Path, line: int, row: Mapping[str, Any]) -> Pair:
    texts, flags = ("chosen", "rejected", "annotator"), ("chosen_truncated", "rejected_truncated")
    _check_keys(path, line, row, ("prompt", *texts, *flags, "strength"))
    truncated = [_flag(path, line, row, key) for key in flags]
    chosen, rejected, annotator = (text_at(path, line, row, key) for key in texts)
    strength = row.get("strength", 0.0)
    if isinstance(strength, bool) or not isinstance(strength, (int, float)):
        raise JsonlError(f"{path}:{line}: key 'strength': expected a number, got {shorten(strength)}")
    return Pair(prompt_at(path, line, row), chosen, rejected, annotator, truncated[0], truncated[1], float(strength))


def _sample(path: Path, line: int, row: Mapping[str, Any]) -> tuple[Prompt, Completion]:
    _check_keys(path, line, row, ("prompt", "sample", "text", "length", "truncated"))
    prompt = prompt_at(path, line, row)
    numbers = [value_at(path, line, row, key) for key in ("sample", "length")]
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise JsonlError(f"{path}:{line}: keys 'sample', 'length': expected integers, got {shorten(numbers)}")
    truncated = _flag(path, line, row, "truncated")
    return prompt, Completion(prompt.id, numbers[0], text_at(path, line, row, "text"), numbers[1], truncated)


def _flag(path: Path, line: int, row: Mapping[str, Any], key: str) -> bool:
    flag = row.get(key, False)
    if not isinstance(flag, bool):
        raise JsonlError(f"{path}:{line}: key '{key}': expected true or false, got {shorten(flag)}")
    return flag


# ---------------------------------------------------------------- checks


def value_at(path: Path, line: int, row: Mapping[str, Any], key: str) -> Any:
    """`row[key]`. Raises JsonlError where it is missing, naming the nearest key."""
    if key not in row:
        near = difflib.get_close_matches(key, row, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        present = ", ".join(row) or "no keys"
        raise JsonlError(f"{path}:{line}: key '{key}' is missing (the row has: {present}){hint}")
    return row[key]


def _check_keys(path: Path, line: int, row: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in row:
        if key not in known:
            raise JsonlError(f"{path}:{line}: key '{key}' is unknown (expected: {', '.join(known)})")


def _check_path(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise JsonlError(f"{path}: expected a file, got a folder")
    folder = path.parent
    if not folder.is_dir():
        raise JsonlError(f"{path}: no such file (and no folder {folder})")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else f" (the folder holds {len(names)} other files)"
    raise JsonlError(f"{path}: no such file{hint}")


def _check_text(value: Any) -> None:
    if isinstance(value, str):
        if (found := _SPLIT_SURROGATES.search(value)) is not None:
            raise ValueError(f"a text holds a split surrogate pair at {found.start()}, which JSON cannot keep apart")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_text(key)
            _check_text(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_text(inner)


def _lines(path: Path, max_row_bytes: int, skip: Skip) -> Iterator[tuple[int, Any]]:
    opened = gzip.open(path, "rb") if path.name.endswith(".gz") else open(path, "rb")  # noqa: SIM115 - closed below
    with opened as file:
        line = 0
        while True:
            line += 1
            try:
                data = file.readline(max_row_bytes + 2)
                too_large = len(data.rstrip(b"\r\n")) > max_row_bytes
                rest = data
                while too_large and rest and not rest.endswith(b"\n"):
                    rest = file.readline(max_row_bytes)
            except (OSError, EOFError, zlib.error) as error:
                raise JsonlError(f"{path}:{line}: cannot be read: {error}") from None
            if not data:
                return
            if line == 1:
                data = data.removeprefix(b"\xef\xbb\xbf")
            try:
                if too_large:
                    raise JsonlError(f"{path}:{line}: the row is larger than {max_row_bytes} bytes")
                if data.strip():
                    yield line, _decode(path, line, data)
            except JsonlError as error:
                skip(line, error)
                yield line, _SKIPPED


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    line = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for row in batch.to_pylist():
                    line += 1
                    yield line, row
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise JsonlError(f"{path}:{line + 1}: cannot be read: {error}") from None


def _json_items(path: Path) -> Iterator[tuple[int, Any]]:
    value = _decode(path, 1, path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    if not isinstance(value, list):
        raise JsonlError(f"{path}: expected a list of objects, got {shorten(value)}")
    yield from enumerate(value, 1)


class _ConstantError(ValueError):
    """NaN or an infinity; the message is its name."""


def _refuse_constant(constant: str) -> None:
    raise _ConstantError(constant)


_ENCODER = json.JSONEncoder(ensure_ascii=True, allow_nan=False)
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _decode(path: Path, line: int, data: bytes) -> Any:
    try:
        return _DECODER.decode(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise JsonlError(f"{path}:{line}: not UTF-8 (byte {error.start + 1}: 0x{data[error.start]:02x})") from None
    except json.JSONDecodeError as error:
        raise JsonlError(f"{path}:{line}: not JSON, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise JsonlError(f"{path}:{line}: nested too deeply") from None
    except _ConstantError as error:
        raise JsonlError(f"{path}:{line}: {error} is not JSON") from None
    except ValueError as error:  # an integer of thousands of digits
        raise JsonlError(f"{path}:{line}: not JSON: {error}") from None
