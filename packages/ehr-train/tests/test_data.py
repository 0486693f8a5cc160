import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ehr_core.errors import ConfigError, DataError
from ehr_core.formats.tokens import NO_TIME, Prefix, TokenStore, prefix_tokens
from ehr_core.formats.vocabulary import BOS, Token, Vocabulary
from ehr_core.outcomes import Question
from ehr_train.loader import samples as loader
from ehr_train.loader.feed import Feed, Share, num_steps, steps
from ehr_train.loader.packing import pack
from ehr_train.loader.timelines import prefix_block
from ehr_train.loader.windows import Windows

from .world import DAY, PREFIX, VOCABULARY, Subject, cohort, table, write_store

CONTEXT = 64
BINARY = Question("binary")


def Samples(store, split, table, context, seed, **options):  # noqa: N802
    return loader.Samples(store, split, table, BINARY, context, seed, **options)


def segments(rows, chosen=None):
    """Every segment of a batch: (token, position, static, columns)."""
    batch = rows.batch(np.arange(len(rows)) if chosen is None else chosen)
    for row in range(batch.token_BT.shape[0]):
        for segment in range(1, int(batch.segment_BT[row].max()) + 1):
            here = batch.segment_BT[row] == segment
            columns = {name: values[row][here] for name, values in batch.columns.items()}
            yield batch.token_BT[row][here], batch.position_BT[row][here], batch.static_BT[row][here], columns


def labels_for(rows):
    subject, time, value = zip(*rows, strict=True)
    return pa.table(
        {
            "subject_id": pa.array(subject, pa.int64()),
            "prediction_time": pa.array(time, pa.timestamp("us")),
            "boolean_value": pa.array(value, pa.bool_()),
        }
    )


@pytest.mark.parametrize("epoch", [0, 1, 5, None])
def test_every_token_is_in_an_epoch_exactly_once(store, epoch):
    windows = Windows(TokenStore(store), "train", CONTEXT, seed=3)
    rows = windows.evaluation() if epoch is None else windows.epoch(epoch)
    # "number" counts from 0 in each of the two shards, so that every number below the shorter one is there twice.
    numbers = torch.cat([columns["number"][~static] for _, _, static, columns in segments(rows)]).numpy()
    lengths = [len(t.token) for t in TokenStore(store).tables("train")]
    assert np.array_equal(np.sort(numbers), np.sort(np.concatenate([np.arange(length) for length in lengths])))


def test_a_window_is_one_subjects_consecutive_tokens_behind_its_prefix_at_its_first_token(store):
    opened = TokenStore(store)
    windows = Windows(opened, "train", CONTEXT, seed=3)
    known = {}  # places repeat from shard to shard, so that the tokens themselves say which of two owners it is
    for shard in opened.tables("train"):
        for place in range(len(shard.subject_id)):
            low, high = shard.offset[place], shard.offset[place + 1]
            known.setdefault((int(low), int(high)), []).append((shard, place))
    for token, position, static, columns in segments(windows.epoch(0)):
        numbers = columns["number"][~static]
        assert torch.equal(numbers, torch.arange(int(numbers[0]), int(numbers[-1]) + 1))
        matches = []
        for (low, high), owners in known.items():
            if low <= numbers[0] and numbers[-1] < high:
                for shard, place in owners:
                    if np.array_equal(shard.token[numbers.numpy()], token[~static].numpy()):
                        prefix = prefix_tokens(PREFIX, shard, place, int(shard.time[numbers[0]]))
                        matches.append(np.array_equal(prefix, token[static].numpy()))
        assert any(matches)
        assert torch.equal(position, torch.arange(len(position)))
        assert static.tolist() == [True] * 3 + [False] * (len(static) - 3)


def test_cuts_vary_from_epoch_to_epoch_and_repeat_with_the_seed(store):
    def cuts(seed, epoch):
        rows = Windows(TokenStore(store), "train", CONTEXT, seed).epoch(epoch)
        return sorted(zip(rows.subject_W.tolist(), rows.start_W.tolist(), strict=True))

    assert cuts(1, 0) == cuts(1, 0)
    assert cuts(1, 0) != cuts(1, 1)
    assert cuts(1, 0) != cuts(2, 0)


def test_cuts_do_not_depend_on_how_subjects_are_laid_out_in_shards(tmp_path):
    people = cohort(1, 20, 5)
    one = write_store(tmp_path / "one", {"train": [people]})
    two = write_store(tmp_path / "two", {"train": [people[:7], people[7:]]})

    def lengths(path):
        rows = Windows(TokenStore(path), "train", CONTEXT, 1).epoch(2)
        ids = rows.timelines.subject_S[rows.subject_W]
        return sorted(zip(ids.tolist(), rows.length_W.tolist(), strict=True))

    assert lengths(one) == lengths(two)


def test_a_subject_without_tokens_makes_no_window_and_a_store_without_tokens_is_refused(tmp_path):
    path = write_store(
        tmp_path / "store", {"train": [[Subject(1, [], []), *cohort(2, 3, 0)]], "tuning": [[Subject(1, [], [])]]}
    )
    rows = Windows(TokenStore(path), "train", CONTEXT, 0).evaluation()
    assert 0 not in rows.subject_W
    with pytest.raises(DataError, match="no tokens"):
        Windows(TokenStore(path), "tuning", CONTEXT, 0)


def test_prefixes_at_once_are_those_of_one_at_a_time():
    rng = np.random.default_rng(0)
    people = []
    for number in range(40):
        times = sorted(rng.integers(0, 1000, 3).tolist())
        static = [(VOCABULARY["SEX//F"], times[0] * DAY), (VOCABULARY["SEX//M"], times[1] * DAY)][: rng.integers(3)]
        static += [(VOCABULARY["SEX//M"], NO_TIME)] if rng.random() < 0.3 else []
        birth = NO_TIME if rng.random() < 0.3 else int(rng.integers(-50_000, 500)) * DAY
        people.append(Subject(number, [7], [times[2] * DAY], static, birth))
    shard = table(people)
    places = rng.integers(0, 40, 500)
    times = rng.integers(-10, 60_000, 500) * DAY
    times[::9] = NO_TIME
    expected = [prefix_tokens(PREFIX, shard, int(p), int(t)) for p, t in zip(places, times, strict=True)]
    assert np.array_equal(prefix_block(PREFIX, shard, places, times), np.array(expected))


def test_packing_leaves_less_than_three_percent_empty():
    rng = np.random.default_rng(0)
    size = np.minimum(np.exp(rng.normal(5.7, 1.0, 20_000)).astype(int) + 1, 1024)
    window, bound = pack(size, 1024, np.random.default_rng(1))
    used = np.add.reduceat(size[window], bound[:-1])
    assert used.max() <= 1024
    assert np.array_equal(np.sort(window), np.arange(len(size)))
    assert 1 - size.sum() / (len(used) * 1024) < 0.005


def test_rows_are_in_random_order_with_full_and_mixed_ones_side_by_side():
    rng = np.random.default_rng(0)
    size = np.where(np.arange(4000) % 2, 64, rng.integers(1, 64, 4000))
    _, bound = pack(size, 64, np.random.default_rng(1))
    full = np.diff(bound) == 1
    thirds = [part.mean() for part in np.array_split(full, 3)]
    assert max(thirds) - min(thirds) < 0.1


def test_columns_follow_their_tokens_and_a_prefix_repeats_integers_and_has_no_number(store):
    for _, _, static, columns in segments(Windows(TokenStore(store), "train", CONTEXT, 0).evaluation()):
        assert torch.equal(columns["value"][~static] * 2, columns["number"][~static].float())
        assert (columns["number"][static] == columns["number"][~static][0]).all()
        assert columns["value"][static].isnan().all()


def test_a_global_batch_has_the_same_rows_for_any_number_of_ranks_and_micro_batches(store):
    data = Windows(TokenStore(store), "train", CONTEXT, 0)

    def tokens(world_size, batch_size, accumulate):
        found = []
        feeds = [steps(data, Share(r, world_size, batch_size, accumulate), 0, 0) for r in range(world_size)]
        for _ in range(2 * num_steps(len(data.epoch(0)), Share(0, 1, 8, 1))):
            parts = [next(feed) for feed in feeds]
            assert len({(p.epoch, p.index, p.last, p.tokens) for p in parts}) == 1
            rows = [tuple(row.tolist()) for part in parts for batch in part.micro for row in batch.token_BT]
            found.append(sorted(rows))
        return found

    assert tokens(1, 8, 1) == tokens(2, 4, 1) == tokens(2, 2, 2) == tokens(1, 1, 8)


def test_a_place_in_the_data_gives_the_same_steps_as_going_there(store):
    data, share = Windows(TokenStore(store), "train", CONTEXT, 0), Share(0, 1, 4, 2)
    walked = [step for step, _ in zip(steps(data, share, 0, 0), range(30), strict=False)]
    for place in (3, 29):
        step = walked[place]
        again = next(steps(data, share, step.epoch, step.index))
        assert all(torch.equal(a.token_BT, b.token_BT) for a, b in zip(step.micro, again.micro, strict=True))


def test_fewer_rows_than_a_global_batch_still_make_a_step_on_every_rank(tmp_path):
    path = write_store(tmp_path / "store", {"train": [[Subject(1, [7] * 10, [0] * 10)]]})
    data = Windows(TokenStore(path), "train", CONTEXT, 0)
    parts = [next(steps(data, Share(rank, 2, 4, 2), 0, 0)) for rank in range(2)]
    assert [part.weights for part in parts] == [[1.0], [0.0]]
    assert all(part.last and part.tokens == 13 for part in parts)


def test_every_rank_has_as_many_micro_batches_and_each_row_counts_once(tmp_path):
    people = [Subject(n, [7 + n] * 60, [DAY] * 60) for n in range(3)]
    data = Windows(TokenStore(write_store(tmp_path / "store", {"train": [people]})), "train", CONTEXT, 0)
    parts = [next(steps(data, Share(rank, 2, 1, 4), 0, 0)) for rank in range(2)]
    assert [part.weights for part in parts] == [[1.0, 1.0], [1.0, 0.0]]
    pairs = [(b, w) for part in parts for b, w in zip(part.micro, part.weights, strict=True)]
    counted = [int(batch.token_BT[0, 5]) for batch, weight in pairs if weight]
    assert sorted(counted) == [7, 8, 9]


def table_of(**columns):
    people = cohort(3000, 30, 3)[:4]
    rows = {"subject_id": pa.array([p.id for p in people], pa.int64())}
    rows["prediction_time"] = pa.array([p.times[-1] for p in people], pa.timestamp("us"))
    return pa.table(rows | columns)


@pytest.mark.parametrize(
    ("question", "columns", "expected"),
    [
        (BINARY, {"boolean_value": [True, False, True, True]}, [1, 0, 1, 1]),
        (Question("multiclass", ("a", "b", "c")), {"integer_value": [2, 0, 1, 2]}, [2, 0, 1, 2]),
        (
            Question("multilabel", ("a", "b")),
            {"boolean_values": [[True, None], [False, False], [None, True], [True, True]]},
            [[1, np.nan], [0, 0], [np.nan, 1], [1, 1]],
        ),
        (Question("regression"), {"float_value": [1.5, -2.0, 0.0, 7.25]}, [1.5, -2.0, 0.0, 7.25]),
        (
            Question("survival"),
            {"time_days": [1.5, 20.0, 3.0, 4.0], "event": [True, False, True, False]},
            [[1.5, 1], [20, 0], [3, 1], [4, 0]],
        ),
        (None, {}, None),
    ],
)
def test_a_batch_carries_the_labels_of_its_kind_in_the_order_of_its_samples(store, question, columns, expected):
    samples = loader.Samples(TokenStore(store), "tuning", table_of(**columns), question, CONTEXT, 0)
    rows = samples.epoch(3)
    batch, every = rows.batch(np.arange(len(rows))), np.arange(len(rows))
    order, _ = rows.samples(rows.windows(every)[0])
    assert len(batch.last_N) == 4
    if expected is None:
        assert batch.label_N is None
    else:
        assert batch.label_N.dtype == torch.float32
        wanted = np.array(expected, np.float32)[order]
        assert np.array_equal(batch.label_N.numpy(), wanted, equal_nan=True)


def test_labels_that_name_no_split_are_divided_as_the_store_is(store, tmp_path):
    tuning, train = cohort(3000, 30, 3)[:2], cohort(1000, 70, 1)[:3]
    rows = [(p.id, p.times[-1], True) for p in (*train, *tuning)]
    (tmp_path / "labels").mkdir()
    pq.write_table(labels_for(rows), tmp_path / "labels" / "all.parquet")
    found = loader.open_labels(tmp_path / "labels", TokenStore(store))
    assert {split: len(table) for split, table in found.tables.items()} == {"train": 3, "tuning": 2}


def test_the_opening_token_is_asked_of_the_vocabulary():
    def vocabulary(*names):
        return Vocabulary([Token(name, "special") for name in names])

    assert loader.opening_token(vocabulary("[PAD]", "[MASK]", "[CLS]", "[BOS]")) == 3
    assert loader.opening_token(vocabulary("[MASK]", "[CLS]", "[PAD]")) == 1
    assert loader.opening_token(vocabulary("[PAD]", "[MASK]")) == 0
    with pytest.raises(DataError, match=r"none of \[BOS\], \[CLS\] and \[PAD\]"):
        loader.opening_token(vocabulary("[MASK]"))


def test_an_error_while_making_batches_is_raised_where_they_are_asked_for():
    def broken():
        yield from ()
        raise DataError("shard is damaged")

    feed = Feed(broken(), pin=False)
    with pytest.raises(DataError, match="damaged"):
        next(feed)
    feed.close()


def test_a_sample_sees_the_latest_tokens_up_to_its_time_and_nothing_after(store):
    opened = TokenStore(store)
    people = cohort(3000, 30, 3)
    wanted = [(p.id, p.times[len(p.times) // 2], False) for p in people]
    samples = Samples(opened, "tuning", labels_for(wanted), CONTEXT, 0)
    rows = samples.evaluation()
    batch = rows.batch(np.arange(len(rows)))
    window, _ = rows.windows(np.arange(len(rows)))
    for number, last in zip(window.tolist(), batch.last_N.tolist(), strict=True):
        person, time = people[number], wanted[number][1]
        visible = [token for token, at in zip(person.tokens, person.times, strict=True) if at <= time][-(CONTEXT - 3) :]
        assert batch.token_BT.flatten()[last - len(visible) + 1 : last + 1].tolist() == visible
        following = batch.segment_BT.flatten()[last + 1 : last + 2]
        assert not len(following) or following != batch.segment_BT.flatten()[last] or (last + 1) % CONTEXT == 0


def test_static_values_of_after_the_prediction_time_are_not_visible(tmp_path):
    female, male = VOCABULARY["SEX//F"], VOCABULARY["SEX//M"]
    person = Subject(1, [7, 8], [10 * DAY, 20 * DAY], [(female, 5 * DAY), (male, 15 * DAY)], 0)
    late = Subject(2, [7], [30 * DAY], [(male, 30 * DAY)], 0)
    path = write_store(tmp_path / "store", {"held_out": [[person, late]]})
    asked = labels_for([(1, 12 * DAY, True), (1, 25 * DAY, True), (2, 20 * DAY, False)])
    samples = Samples(TokenStore(path), "held_out", asked, CONTEXT, 0)
    assert samples.lead_NP[:, 0].tolist() == [female, female, VOCABULARY["SEX//?"]]
    assert samples.length_N.tolist() == [1, 2, 0]


def test_a_prediction_does_not_see_that_the_record_ends(tmp_path):
    end = VOCABULARY["TIMELINE_END"]
    person = Subject(1, [7, 8, end], [10 * DAY, 20 * DAY, 20 * DAY + 1])
    path = write_store(tmp_path / "store", {"held_out": [[person]]})
    samples = Samples(TokenStore(path), "held_out", labels_for([(1, 12 * DAY, True), (1, 50 * DAY, True)]), CONTEXT, 0)
    assert samples.length_N.tolist() == [1, 2]


def test_changing_everything_after_the_prediction_time_changes_no_batch(tmp_path):
    people = cohort(1, 12, 9)
    cut = {p.id: p.times[len(p.times) // 2] for p in people}
    changed = [
        dataclasses.replace(
            p,
            tokens=[t if at <= cut[p.id] else 14 for t, at in zip(p.tokens, p.times, strict=True)],
            static=[*p.static, (VOCABULARY["SEX//?"], cut[p.id] + 1)],
        )
        for p in people
    ]
    asked = labels_for([(p.id, cut[p.id], True) for p in people])

    def batch(name, subjects):
        rows = Samples(TokenStore(write_store(tmp_path / name, {"train": [subjects]})), "train", asked, 64, 0).epoch(0)
        return rows.batch(np.arange(len(rows)))

    one, two = batch("one", people), batch("two", changed)
    assert torch.equal(one.token_BT, two.token_BT)
    assert torch.equal(one.last_N, two.last_N)


def test_a_subject_with_nothing_visible_is_asked_by_its_prefix_or_by_one_bos(tmp_path):
    people = [Subject(1, [7], [DAY], [(VOCABULARY["SEX//F"], NO_TIME)], 0)]
    asked = labels_for([(1, 0, True), (1, 2 * DAY, True)])
    with_prefix = Samples(TokenStore(write_store(tmp_path / "a", {"train": [people]})), "train", asked, 64, 0)
    bare_people = [dataclasses.replace(people[0], static=[])]
    without = Samples(
        TokenStore(write_store(tmp_path / "b", {"train": [bare_people]}, Prefix())), "train", asked, 64, 0
    )
    first = [token.tolist() for token, *_ in segments(with_prefix.evaluation())]
    assert [VOCABULARY["SEX//F"], VOCABULARY["AGE//0"], VOCABULARY["AGE//0"]] in first
    bare = without.evaluation()
    assert sorted(token.tolist() for token, *_ in segments(bare)) == [[BOS], [7]]
    assert bare.batch(np.array([0])).static_BT.sum() == 1


def test_subjects_that_the_store_does_not_have_are_refused_with_their_number(store):
    with pytest.raises(DataError, match=r"2 of the 3 subjects .* are not in store/tuning"):
        Samples(TokenStore(store), "tuning", labels_for([(3001, 0, True), (9, 0, True), (8, 0, True)]), 64, 0)


def test_labels_stay_with_their_samples_when_rows_are_shuffled(store):
    people = cohort(3000, 30, 3)
    asked = [(p.id, p.times[-1], index % 3 == 0) for index, p in enumerate(people)]
    rows = Samples(TokenStore(store), "tuning", labels_for(asked), CONTEXT, 0).epoch(4)
    window, _ = rows.windows(np.arange(len(rows)))
    batch = rows.batch(np.arange(len(rows)))
    assert batch.label_N.tolist() == [float(asked[n][2]) for n in window]
    last = [people[n].tokens[-1] for n in window]
    assert batch.token_BT.flatten()[batch.last_N].tolist() == last


def test_samples_that_begin_together_share_a_window_and_keep_their_own_last_token_and_label(store):
    people = cohort(3000, 30, 3)
    asked = [(p.id, p.times[at], (index + at) % 3 == 0) for index, p in enumerate(people) for at in (2, 5, -1)]
    apart, shared = (Samples(TokenStore(store), "tuning", labels_for(asked), 64, 0, share=s) for s in (False, True))
    rows = shared.epoch(4)
    batch, chosen = rows.batch(np.arange(len(rows))), np.arange(len(rows))
    sample, _ = rows.samples(rows.windows(chosen)[0])
    assert sorted(sample.tolist()) == list(range(len(asked)))
    assert len(rows.window_W) < len(asked)
    alone = apart.evaluation()
    token, start = batch.token_BT.flatten(), batch.position_BT.flatten()
    for index, number in enumerate(sample.tolist()):
        last = int(batch.last_N[index])
        window = token[last - int(start[last]) : last + 1].tolist()
        expected = alone.lead_WP[number, : alone.lead_W[number]].tolist()
        shard, begin = alone.timelines.shard_S[alone.subject_W[number]], alone.start_W[number]
        expected += alone.timelines.tables[shard].token[begin : begin + alone.length_W[number]].tolist()
        assert window == expected
        assert float(batch.label_N[index]) == float(shared.label_N[number])


def test_a_context_that_the_prefix_fills_is_refused(store):
    with pytest.raises(ConfigError, match=r"context_length is 3"):
        Windows(TokenStore(store), "train", 3, 0)
