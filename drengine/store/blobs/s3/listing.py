"""What exists, by a listing: all that there is to go by when the catalogue is lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from drengine.store.blobs.index import PartRow, contiguous, parse_key
from drengine.store.blobs.s3.client import ObjectClient
from drengine.store.blobs.s3.spool import Spool
from drengine.store.names import source_of


class ListedIndex:
    """Rows made from what lies in the object store and in the spool. It changes neither; see Index.

    Of several files of one name counts the one whose objects reach furthest; of those that reach as far, the one that
    was stored last. Which of them was committed is for the segments' own checks to say.
    """

    def __init__(self, client: ObjectClient, spool: Spool, holder: str) -> None:
        """`holder` is this host, whose spool it is."""
        self._client, self._spool, self._holder = client, spool, holder
        self._rows: dict[str, list[PartRow]] | None = None

    def another(self) -> ListedIndex:
        """See Index."""
        return self

    def close(self) -> None:
        """See Index."""

    def parts(self, source: str, name: str) -> list[PartRow]:
        """See Index."""
        del source
        return list(self._found().get(name, []))

    def part_names(self, source: str | None, prefix: str) -> list[str]:
        """See Index."""
        del source
        return sorted(name for name in self._found() if name.startswith(prefix))

    def all_parts(self) -> list[PartRow]:
        """See Index."""
        return [row for rows in self._found().values() for row in rows]

    @contextmanager
    def transaction(self, source: str | None = None, /) -> Iterator[None]:
        """See Index."""
        del source
        yield

    def put(self, *rows: Any) -> None:
        """See Index. Decisions to delete are not kept: what is not named is set aside."""
        for row in rows:
            if isinstance(row, PartRow):
                kept = [each for each in self.parts(row.source, row.name) if each.begin != row.begin]
                self._found()[row.name] = sorted([*kept, row], key=lambda each: each.begin)

    def remove(self, *rows: Any) -> None:
        """See Index."""
        for row in rows:
            kept = [each for each in self.parts(row.source, row.name) if each.begin != row.begin]
            self._found()[row.name] = kept
            if not kept:
                del self._found()[row.name]

    def _found(self) -> dict[str, list[PartRow]]:
        if self._rows is None:
            self._rows = self._list()
        return self._rows

    def _list(self) -> dict[str, list[PartRow]]:
        files: dict[str, dict[str, list[tuple[int, PartRow]]]] = {}
        for each in self._client.list(""):
            if (key := parse_key(each.key)) is None:
                continue
            row = PartRow(source_of(key.name), key.name, key.begin, each.size, key.file, key.object, b"", "")
            files.setdefault(key.name, {}).setdefault(key.file, []).append((each.changed_ns, row))
        for local in self._spool.files(""):
            size = self._spool.path(*local).stat().st_size
            row = PartRow(source_of(local.name), local.name, 0, 0, local.file, "", b"", self._holder)
            files.setdefault(local.name, {}).setdefault(local.file, []).append((0, row._replace(length=size)))
        found = {}
        for name, by_file in files.items():
            best = max(by_file.values(), key=_reach)
            rows = [row if row.object else row._replace(length=0) for _, row in best]
            chosen = contiguous(rows)
            found[name] = chosen or [row for row in rows if not row.object]
        return {name: rows for name, rows in found.items() if rows}


def _reach(candidates: list[tuple[int, PartRow]]) -> tuple[int, int]:
    end = max((row.end for row in contiguous(row for _, row in candidates)), default=0)
    return end, max(changed for changed, _ in candidates)
