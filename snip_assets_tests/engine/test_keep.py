"""The keep rule against the sequential greedy, written as plainly as it can be."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snip_assets.engine import keep as module
from snip_assets.engine import pair_files
from snip_assets.engine.errors import BadInputError
from snip_assets.engine.keep import ascending_keys, keep
from snip_assets.engine.metadata import Metadata
from snip_assets.engine.storage import external_sort

from .pair_tools import write_pairs
from .test_groups import graphs


def with_copies(rows, pairs, copies):
    """Replace the distances of 0 and append later copies of some rows."""
    pairs = [(a, b, d or 0.01) for a, b, d in pairs]
    for number, first in enumerate(copies):
        pairs.append((rows + number, first % rows, 0.0))
    return rows + len(copies), pairs


def sequential(rows, pairs, values=None, most=np.inf):
    """(kept row, distance) of each row, by visiting classes of copies one after the other."""
    pairs = [p for p in pairs if np.float32(p[2]) <= np.float32(most)]
    first = list(range(rows))
    for a, b, d in pairs:
        if d == 0:
            first[a] = b
    members = {f: [r for r in range(rows) if first[r] == f] for f in set(first)}
    edges = {f: [] for f in members}
    for a, b, d in pairs:
        if first[a] != first[b]:
            edges[first[a]].append((first[b], d))
            edges[first[b]].append((first[a], d))

    def priority(row):
        count = len(members[first[row]]) - 1
        count += sum(len(members[c]) for c, _ in edges[first[row]])
        return (-count if values is None else values[row], row)

    best = {f: min(members[f], key=priority) for f in members}
    kept = set()
    for f in sorted(members, key=lambda f: priority(best[f])):
        if not any(c in kept for c, _ in edges[f]):
            kept.add(f)
    answer = []
    for row in range(rows):
        f = first[row]
        near = [(np.float32(d), best[c]) for c, d in edges[f] if c in kept]
        far, to = (np.float32(0), best[f]) if f in kept else min(near)
        answer.append((to, far))
    return answer


def run(folder, rows, pairs, rule="neighbours", files=1, **options):
    paths = [write_pairs(folder / f"{i}.parquet", pairs[i::files], 5) for i in range(files)]
    facts = keep(paths, rows, rule, folder, **options)
    names = ("kept_row", "kept_distance", "dropped_kept_rows", "dropped_rows")
    kept_row, far, *by_kept = (np.load(folder / f"{name}.npy") for name in names)
    return facts, kept_row, far, list(zip(*by_kept, strict=True))


def column(folder, values):
    """A metadata file with one column, as two shards would hold it."""
    half = len(values) // 2
    paths = [folder / "metadata_a.parquet", folder / "metadata_b.parquet"]
    for path, part in zip(paths, (values[:half], values[half:]), strict=True):
        pq.write_table(pa.table({"Score": pa.array(part, pa.float64())}), path)
    return Metadata(["a", "b"], paths, np.array([0, half, len(values)]))


@settings(max_examples=60, deadline=None)
@given(
    graphs(),
    st.lists(st.integers(0, 29), max_size=8),
    st.sampled_from(["neighbours", "first", "largest(score)", "lowest(score*2-1)"]),
    st.sampled_from([None, 0.0, 0.05, 0.1]),
    st.data(),
)
def test_equal_to_the_sequential_greedy_and_without_orphans(
    tmp_path_factory, graph, copies, rule, most, data
):
    folder = tmp_path_factory.mktemp("keep")
    rows, pairs = with_copies(*graph, copies)
    values = data.draw(
        st.lists(st.sampled_from([0.5, 1.0, -2.0, None]), min_size=rows, max_size=rows)
    )
    order = None
    if rule == "first":
        order = [0] * rows
    elif "score" in rule:
        sign = -1 if "largest" in rule else 1
        order = [np.inf if v is None else sign * v for v in values]
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):
            for where in (module, pair_files):
                patch.setattr(where, "row_dtype", lambda rows: np.uint64)
        patch.setattr(external_sort, "BUFFER", data.draw(st.integers(1, 8)))
        facts, kept_row, far, dropped_by_kept = run(
            folder, rows, pairs, rule, 3, max_distance=most, metadata=column(folder, values)
        )
    limit = np.inf if most is None else most
    assert list(zip(kept_row, far, strict=True)) == sequential(rows, pairs, order, limit)
    dropped = np.flatnonzero(kept_row != np.arange(rows))
    assert facts == {"rows": rows, "kept": rows - len(dropped), "dropped": len(dropped)}
    expected = sorted((kept_row[r], r) for r in dropped)
    assert dropped_by_kept == expected
    # What the rule promises, said once more without an algorithm.
    assert np.isin(kept_row[dropped], dropped).sum() == 0
    assert (far <= np.float32(limit)).all()
    kept = set(range(rows)) - set(dropped)
    assert not [p for p in pairs if p[0] in kept and p[1] in kept and p[2] <= limit]


@pytest.mark.parametrize("rule", ["first", "largest(score)", "neighbours"])
def test_a_path_of_a_million_rows_with_falling_priority(tmp_path, rule):
    rows = 1_000_000
    path = np.arange(1, rows)
    file = write_pairs(tmp_path / "p.parquet", (path, path - 1, np.full(rows - 1, 0.05)))
    metadata = column(tmp_path, np.arange(rows)) if "score" in rule else None
    keep([file], rows, rule, tmp_path, metadata=metadata)
    kept = np.load(tmp_path / "kept_row.npy") == np.arange(rows)
    # Row 0 goes first, or the last row, or row 1 (the first with two neighbours).
    np.testing.assert_array_equal(kept, np.arange(rows) % 2 == (0 if rule == "first" else 1))


def test_a_star_keeps_its_centre_and_a_chain_does_not_erase_its_end(tmp_path):
    star = [(i, 0, 0.05) for i in range(1, 50)]
    _, kept_row, _, _ = run(tmp_path, 50, star)
    assert not kept_row.any()
    # 0 - 1 - 2 - 3: one component, but 3 looks like 2 alone.
    chain = [(1, 0, 0.1), (2, 1, 0.1), (3, 2, 0.1)]
    _, kept_row, _, _ = run(tmp_path, 4, chain)
    assert list(kept_row) == [1, 1, 1, 3]


def test_a_better_later_copy_survives_for_its_whole_class(tmp_path):
    # Row 3 is a copy of row 0, whose neighbour is row 1.
    pairs = [(1, 0, 0.05), (3, 0, 0.0)]
    _, kept_row, far, _ = run(
        tmp_path, 4, pairs, "largest(Score)", metadata=column(tmp_path, [1, 2, 0, 9])
    )
    assert list(kept_row) == [3, 3, 2, 3]
    assert list(far) == [0, np.float32(0.05), 0, 0]
    _, kept_row, far, _ = run(
        tmp_path, 4, pairs, "largest(Score)", metadata=column(tmp_path, [1, 10, 0, 9])
    )
    assert list(kept_row) == [1, 1, 2, 1]
    assert list(far) == [np.float32(0.05), 0, 0, np.float32(0.05)]


def test_distance_zero_of_unlike_bytes_is_no_copy_when_hashes_say_so(tmp_path):
    pairs = [(1, 0, 0.0), (2, 0, 0.05)]
    _, kept_row, _, _ = run(tmp_path, 3, pairs, "first")
    assert list(kept_row) == [0, 0, 0]
    scores = column(tmp_path, [0, 1, 2])
    # As copies, 2 explains both; as unlike rows, 1 is not 2's neighbour and stays.
    _, kept_row, _, _ = run(tmp_path, 3, pairs, "largest(score)", metadata=scores)
    assert list(kept_row) == [2, 2, 2]
    for second, answer in ((8, [1, 1, 2]), (7, [2, 2, 2])):
        hashes = np.array([7, second, 9])

        def same(row: np.ndarray, earlier: np.ndarray, of: np.ndarray = hashes) -> np.ndarray:
            return of[row] == of[earlier]

        _, kept_row, _, _ = run(tmp_path, 3, pairs, "largest(score)", metadata=scores, copies=same)
        assert list(kept_row) == answer


def test_the_same_bytes_for_any_division_into_files(tmp_path):
    random = np.random.default_rng(0)
    ends = np.sort(random.integers(0, 500, (800, 2)), axis=1)
    ends = np.unique(ends[ends[:, 0] < ends[:, 1]], axis=0)
    pairs = [(b, a, d) for (a, b), d in zip(ends, random.random(len(ends)), strict=True)]
    answers = []
    for files in (1, 4):
        folder = tmp_path / str(files)
        folder.mkdir()
        run(folder, 500, pairs, files=files)
        answers.append([p.read_bytes() for p in sorted(folder.glob("*.npy"))])
        random.shuffle(pairs)
    assert answers[0] == answers[1]
    assert not list(tmp_path.glob("*/.tmp-*"))


@given(st.lists(st.floats(width=64), max_size=20))
def test_keys_sort_as_their_numbers(values):
    array = np.array(values, np.float64)
    order = np.argsort(ascending_keys(array), kind="stable")
    np.testing.assert_array_equal(array[order], np.sort(array))


def test_an_expression_without_metadata_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="needs the metadata of 4 rows; given no metadata"):
        run(tmp_path, 4, [(1, 0, 0.1)], "largest(score)")
