"""The report: a static site in the output folder that needs no network and no server.

Pages: summary, curves, most copied, random pairs, borderline pairs, doubtful groups; the most
copied also as Parquet and CSV. The same outputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from snip_assets.engine import threads
from snip_assets.engine.cost import measured
from snip_assets.engine.layout import STATIONS
from snip_assets.engine.progress import track
from snip_assets.engine.run import Run
from snip_assets.engine.storage.files import (
    Manifest,
    atomic_path,
    current,
    digest_of,
    read_manifest,
    require,
    seal,
    write_parquet,
)
from snip_assets.engine.storage.locks import lock
from snip_assets.engine.verify_bitmap import spreadsheet_cell

from . import gallery, gallery_groups, gallery_pairs, marks, site_curves, site_data, site_pages
from .gallery_groups import Group
from .gallery_pairs import Pair
from .summary import summary

GROUPS_A_PAGE = 10
# Parts of the report that are looked up at the same time.
AT_ONCE = 2


def _inputs(run: Run) -> dict[str, str]:
    """What the report of a run as it was made depends on."""
    found = {
        station: digest_of([m.version for m in site_data.manifests(run, station)])
        for station in STATIONS
    }
    return {
        "shown": digest_of(found),
        # Captions and urls of rows that went are in no other output.
        "metadata": digest_of([m.inputs for m in site_data.manifests(run, "metadata")]),
        "settings": digest_of(run.settings.__dict__ | {"workers": 0}),
        "reviewed": marks.version(run.layout),
        "pages": digest_of([site_pages.templates_version(), site_data.versions()]),
    }


def outdated(run: Run) -> bool:
    """Whether the report is missing, or something that it shows has changed since."""
    run = site_data.as_made(run)
    return current(run.layout.dedup_report, _inputs(run)) is None


def dedup_report(run: Run) -> Manifest:
    """Write the report unless it is current.

    Time and memory are bounded at any scale: samples of pairs and near misses, the 200 largest
    groups, exact search in random shards; the labels and pairs are streamed.

    Raises
    ------
    StaleOutputError
        Something that it shows is not made yet, or was made with another keep rule.
    """
    run = site_data.as_made(run)
    layout = run.layout
    require(layout.dup_bitmap, "dup_bitmap")
    inputs = _inputs(run)
    if (manifest := current(layout.dedup_report, inputs)) is not None:
        return manifest
    with lock(layout.dedup_report):
        with measured() as cost, atomic_path(layout.dedup_report) as folder:
            folder.mkdir(parents=True)
            facts = _Site(run, folder).write()
        return seal(layout.dedup_report, inputs, **cost.facts, **facts)


class _Site:
    """One writing of the site into `folder`."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        root = gallery.root_of(run.registry)
        shown = run.settings.pictures
        self.pictures = gallery.Pictures(root, run.layout.dedup_report, folder / "images", shown)
        self.marks = marks.current(run.layout)
        self.curves, self.quality, groups, pairs, outside = self._found()
        self.copied, self.doubtful = groups
        found = {"random": pairs[0], "inside": pairs[1], "outside": outside}
        drawn = {(p.row, p.earlier_row) for p in found["random"]}
        self.pairs = {kind: self._marked(some, drawn) for kind, some in found.items()}
        self.cards = self._cards()
        first = read_manifest(run.layout.clip_features(run.registry.keys[0]))
        self.common = {
            "data_set": f"{root.name}, {run.registry.rows:,} rows",
            # Row ids stay when shards arrive, and so do the marks in a browser.
            "data_id": first.version[:16] if first else "",
            "pictures": shown,
        }

    def _found(self) -> list[Any]:
        """What the pages show, but for the cards; a part takes one core, or waits for the disk."""
        parts: list[Callable[[Run], Any]] = [
            lambda run: site_curves.curves_values(run, self.marks),
            site_data.quality,
            gallery_groups.largest_and_doubtful,
            gallery_pairs.random_and_inside,
            gallery_pairs.just_outside,
        ]
        found = threads.ordered_map(lambda part: part(self.run), parts, AT_ONCE)
        return list(track(found, "what the report shows", len(parts), "parts"))

    def _cards(self) -> dict[int, gallery.Card]:
        """Of all rows that a page shows: each file of metadata is read once for them."""
        rows = gallery_groups.rows_shown(self.copied + self.doubtful)
        rows += [r for some in self.pairs.values() for p in some for r in (p.row, p.earlier_row)]
        kept = self.run.layout.shown_rows
        return gallery.Cards(self.run.registry, self.pictures, kept).of(rows)

    def write(self) -> dict[str, Any]:
        """All pages; facts for the manifest."""
        steps = (self._summary, self._curves, self._copied, self._pairs, self._doubtful)
        facts: dict[str, Any] = {}
        for step in track(steps, "report", len(steps), "pages"):
            facts |= step()
        return facts

    def _page(self, file: str, template: str, title: str, **values: Any) -> None:
        text = site_pages.render(template, title=title, **self.common, **values)
        (self.folder / file).write_text(text, encoding="utf-8")

    def _summary(self) -> dict[str, Any]:
        values = summary(self.run.layout)
        quality = self.quality
        reviewed = marks.shares(self.marks, self.run.settings.max_distance)
        self._page(
            "index.html",
            "index.html",
            "Summary",
            **site_curves.summary_values(self.run, values, quality, reviewed),
        )
        shown = {f"reviewed {k}": v for k, v in reviewed.items()} | quality
        intervals = {k: [v.estimate, v.low, v.high, v.trials] for k, v in shown.items()}
        return {"rows": values["rows"], "dropped": values["dropped"], "quality": intervals}

    def _curves(self) -> dict[str, Any]:
        values = self.curves
        self._page("curves.html", "curves.html", "Curves", **values)
        return {"thresholds": [[c["max_distance"], c["dropped"]] for c in values["cuts"]]}

    def _copied(self) -> dict[str, Any]:
        groups, cards = self.copied, self.cards
        self._export()
        pages = max(1, -(-len(groups) // GROUPS_A_PAGE))
        files = ["copied.html", *(f"copied-{n}.html" for n in range(2, pages + 1))]
        intro = (
            "The largest groups: candidates for what a model trained on this data memorises. "
            "The framed picture is the kept row that explains most others; distances are to it. "
            "Where another kept row explains a dropped one, the distance to that is told too."
        )
        for number, file in enumerate(files):
            part = groups[number * GROUPS_A_PAGE : (number + 1) * GROUPS_A_PAGE]
            shown = {"groups": part, "cards": cards, "files": files, "number": number}
            self._page(file, "groups.html", "Most copied", intro=intro, export=True, **shown)
        sources = [(cards[g.representative].source, g.size) for g in groups]
        local = [[s, n] for s, n in sources if s is not None and s.startswith("images/")]
        return {"largest_groups": [g.size for g in groups[:10]], "preview": local[:6]}

    def _export(self) -> None:
        lines = [line for group in self.copied for line in _export_lines(group, self.cards)]
        table = pa.Table.from_pylist(lines, schema=EXPORT)
        write_parquet(self.folder / "most_copied.parquet", table)
        for name in (field.name for field in EXPORT if pa.types.is_string(field.type)):
            # A spreadsheet must not take a caption for a formula; Parquet has it as it is.
            texts = [spreadsheet_cell(text) for text in table[name].to_pylist()]
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, pa.array(texts, pa.string()))
        pyarrow.csv.write_csv(table, self.folder / "most_copied.csv")

    def _pairs(self) -> dict[str, Any]:
        random, inside, outside = self.pairs.values()
        cards = self.cards
        intro = (
            "A random sample of all pairs that were found. The share that you mark right is the "
            "precision that people see; its 95% interval narrows as you go on."
        )
        self._page(
            "pairs.html", "pairs.html", "Random pairs",
            intro=intro, cards=cards, sets=[("random", "Random pairs", "", random)],
        )  # fmt: skip
        most = site_pages.number(self.run.settings.max_distance)
        self._page(
            "borderline.html", "pairs.html", "Borderline pairs",
            intro=f"Pairs next to the threshold, {most}: where it errs, it errs here.",
            cards=cards, sets=_borderline(most, inside, outside),
        )  # fmt: skip
        return {"pairs_shown": {kind: len(some) for kind, some in self.pairs.items()}}

    def _marked(self, pairs: list[Pair], drawn: set[tuple[int, int]]) -> list[Pair]:
        given = {
            (m["row"], m["earlier_row"]): "right" if m["right"] else "wrong"
            for m in self.marks.to_pylist()
        }
        ends = [(p.row, p.earlier_row) for p in pairs]
        return [
            replace(pair, mark=given.get(both, ""), random=both in drawn)
            for pair, both in zip(pairs, ends, strict=True)
        ]

    def _doubtful(self) -> dict[str, Any]:
        groups = self.doubtful
        intro = (
            "Groups whose members lie farthest from the representative, the farthest shown: of the "
            f"{gallery_groups.CHAINED} that keep most rows, and of as many with a row that is far "
            "from the one kept for it. "
            "Resemblance is not transitive: a chain may join rows that differ, and then more than "
            "one of them is kept. Distances are to the framed row. Where another kept row explains "
            "a dropped one, the distance to that is told too: it is within the threshold."
        )
        shown = {"groups": groups, "cards": self.cards, "files": [], "number": 0, "export": False}
        self._page("doubtful.html", "groups.html", "Doubtful groups", intro=intro, **shown)
        return {"largest_spread": round(max((g.spread for g in groups), default=0.0), 6)}


EXPORT = pa.schema(
    [
        ("rank", pa.int32()),
        ("group", pa.uint64()),
        ("size", pa.uint64()),
        ("row", pa.uint64()),
        ("representative", pa.bool_()),
        ("kept", pa.bool_()),
        ("distance", pa.float32()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("dimensions", pa.string()),
    ]
)


def _export_lines(group: Group, cards: dict[int, gallery.Card]) -> list[dict[str, Any]]:
    rows = [(group.representative, True, True, 0.0)]
    rows += [(m.row, False, m.kept, m.distance) for m in group.members]
    return [
        {
            "rank": group.rank,
            "group": group.group,
            "size": group.size,
            "row": row,
            "representative": first,
            "kept": kept,
            "distance": distance,
            "url": cards[row].texts[0],
            "caption": cards[row].texts[1],
            "dimensions": cards[row].size,
        }
        for row, first, kept, distance in rows
    ]


def _borderline(most: str, inside: list[Pair], outside: list[Pair]) -> list[tuple[Any, ...]]:
    return [
        ("inside", "Just inside", f"Taken for duplicates, at little less than {most}.", inside),
        (
            "outside",
            "Just outside",
            f"Near misses: not taken for duplicates, at little more than {most}; found by exact "
            "search of the raw features for random rows. Right means that they are the same "
            "picture all the same.",
            outside,
        ),
    ]
