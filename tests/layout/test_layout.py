"""The layout grammar and its columns: round trips, bad words, sets of modules and switches."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoparallel import layout as grammar
from autoparallel.errors import ConfigError
from autoparallel.layout import (
    KNOB_FIELDS,
    OVERLAPS,
    RECOMPUTE_MODULES,
    Knobs,
    Layout,
    knobs,
    modules_mask,
    overlap_mask,
)

CONTRACT = (
    "tp8 pp8 vpp3 group8 cp2 cpcomm=a2a+p2p ep8 etp1 mbs1 sp zero1 shard=8 recompute=full/block/4",
    "recompute=none",
    "recompute=core_attn+mlp",
    "sched=1f1b",
    "stages=7,8*6,7",
    "prec=bf16 grad=fp32 offload=opt0.5 graph=moe fw=megatron-core",
)


def sizes(least: int = 1, most: int = 9_999_999) -> st.SearchStrategy[int]:
    return st.integers(least, most)


def subsets(names: tuple[str, ...], least: int = 0) -> st.SearchStrategy[tuple[str, ...]]:
    """Sets of names, in the order the grammar keeps them in."""
    return st.sets(st.sampled_from(names), min_size=least).map(
        lambda chosen: tuple(n for n in names if n in chosen)
    )


RECOMPUTATIONS = st.one_of(
    st.just({"recompute_granularity": "none"}),
    subsets(RECOMPUTE_MODULES, 1).map(
        lambda m: {"recompute_granularity": "selective", "recompute_modules": m}
    ),
    st.builds(
        lambda method, n: {
            "recompute_granularity": "full",
            "recompute_method": method,
            "recompute_num_layers": n,
        },
        st.sampled_from(grammar.METHODS),
        sizes(0, 99_999),
    ),
)
STAGES = st.lists(st.tuples(sizes(0, 9_999), sizes(1, 40)), max_size=12).map(
    lambda runs: tuple(layers for layers, times in runs for _ in range(times))
)
FIELDS: dict[str, st.SearchStrategy[object]] = {
    "tensor_model_parallel_size": sizes(),
    "pipeline_model_parallel_size": sizes(),
    "virtual_pipeline_model_parallel_size": sizes(),
    "microbatch_group_size_per_vp_stage": sizes(0),
    "context_parallel_size": sizes(),
    "cp_comm_type": st.sampled_from(grammar.CP_COMM_TYPES),
    "expert_model_parallel_size": sizes(),
    "expert_tensor_parallel_size": sizes(),
    "micro_batch_size": sizes(),
    "sequence_parallel": st.booleans(),
    "zero_stage": sizes(0),
    "shard_group_size": sizes(0),
    "schedule": st.sampled_from(grammar.SCHEDULES),
    "stage_layers": STAGES,
    "precision": st.sampled_from(grammar.PRECISIONS),
    "grad_reduce_dtype": st.sampled_from(grammar.GRAD_DTYPES),
    "optimizer_offload_fraction": st.one_of(st.just(0.0), st.floats(1e-9, 1.0)),
    "cuda_graph_scope": st.sampled_from(grammar.GRAPH_SCOPES),
    "overlap": subsets(OVERLAPS),
    "framework": st.from_regex(r"[a-z][a-z0-9.\-]{0,20}", fullmatch=True),
}
LAYOUTS = st.builds(
    lambda values, recompute: Layout(**values, **recompute),
    st.fixed_dictionaries(FIELDS),
    RECOMPUTATIONS,
)


def test_every_field_is_drawn() -> None:
    recompute = {name for name in (f.name for f in fields(Layout)) if name.startswith("recompute")}
    assert FIELDS.keys() | recompute == {f.name for f in fields(Layout)}


# ---- the grammar ---------------------------------------------------------------------------------


@given(LAYOUTS)
@settings(max_examples=150, deadline=None)
def test_what_is_written_reads_back(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout


@given(LAYOUTS)
@settings(deadline=None)
def test_word_order_does_not_matter(layout: Layout) -> None:
    assert Layout.parse(" ".join(reversed(str(layout).split()))) == layout


@given(LAYOUTS, LAYOUTS, st.sampled_from(sorted(FIELDS)))
@settings(max_examples=60, deadline=None)
def test_text_is_an_identity(a: Layout, other: Layout, name: str) -> None:
    b = replace(a, **{name: getattr(other, name)})
    assert (str(a) == str(b)) == (a == b)
    assert hash(Layout.parse(str(a))) == hash(a)


@pytest.mark.parametrize("text", CONTRACT)
def test_examples_of_the_contract(text: str) -> None:
    layout = Layout.parse(text)
    assert Layout.parse(str(layout)) == layout


def test_the_long_example_sets_what_it_says() -> None:
    layout = Layout.parse(CONTRACT[0])
    assert layout == Layout(
        tensor_model_parallel_size=8,
        pipeline_model_parallel_size=8,
        virtual_pipeline_model_parallel_size=3,
        microbatch_group_size_per_vp_stage=8,
        context_parallel_size=2,
        cp_comm_type="a2a+p2p",
        expert_model_parallel_size=8,
        sequence_parallel=True,
        shard_group_size=8,
        recompute_granularity="full",
        recompute_method="block",
        recompute_num_layers=4,
        schedule="interleaved",
    )
    assert layout.model_parallel_size == 128
    assert layout.data_parallel_size(1024) == 8


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("recompute=full", "recompute=full/uniform/1"),
        ("recompute=selective", "recompute=core_attn"),
        ("recompute=mlp+core_attn+mlp", "recompute=core_attn+mlp"),
        ("recompute=none", ""),
        ("vpp2", "vpp2 sched=interleaved"),
        ("vpp1", "sched=1f1b"),
        ("stages=3*2,3", "stages=3,3,3"),
        ("stages=7,8*6,7", "stages=7,8,8,8,8,8,8,7"),
        ("overlap=p2p+grad+param", ""),
        ("offload=opt.5", "offload=opt0.5"),
        ("shard8 tp=4", "tp4 shard=8"),
        ("  tp2\t pp3\n", "pp3 tp2"),
    ],
)
def test_two_ways_to_say_one_thing(short: str, long: str) -> None:
    assert Layout.parse(short) == Layout.parse(long)


def test_a_chunked_schedule_can_be_named_otherwise() -> None:
    assert Layout.parse("pp4 vpp2 sched=bfs").schedule == "bfs"
    assert "sched=1f1b" in str(replace(Layout.parse("pp4 vpp2"), schedule="1f1b"))


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("tpp8", "tp"),
        ("mb4", "mbs"),
        ("recompte=full", "recompute"),
        ("offlod=opt1", "offload"),
        ("stage=8", "stages"),
        ("zer1", "zero"),
        ("TP8", "tp"),
    ],
)
def test_an_unknown_word_names_its_nearest(word: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown word '{word}'.*did you mean '{near}'"):
        Layout.parse(f"pp2 {word}")


def test_the_data_parallel_size_is_not_written() -> None:
    with pytest.raises(ConfigError, match=r"unknown word 'dp8'.*follows from the number of GPUs"):
        Layout.parse("tp8 dp8")


def test_a_word_like_no_other_gets_the_list() -> None:
    with pytest.raises(ConfigError, match=r"known: cp, cpcomm, ep.*zero"):
        Layout.parse("§§§§§§§§§§")


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("prec=fp9", "fp8"),
        ("sched=1f1", "1f1b"),
        ("graph=mo", "moe"),
        ("cpcomm=p2", "p2p"),
        ("recompute=core_atn", "core_attn"),
        ("overlap=gard", "grad"),
    ],
)
def test_a_wrong_choice_names_its_nearest(text: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
        Layout.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "tp2 tp2",
        "tp2 tp=4",
        "sp sp",
        "recompute=none recompute=full",
        "fw=a fw=a",
        "stages=1 stages=2",
    ],
)
def test_a_field_is_set_once(text: str) -> None:
    with pytest.raises(ConfigError, match="a second time"):
        Layout.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "tp",
        "tp0",
        "pp-1",
        "tp1.5",
        "tp1e3",
        "mbs=",
        "vpp0",
        "group0",
        "shard=0",
        "zero-1",
        "tp12345678",
        "tp" + "9" * 5000,
        "sp1",
        "sp=1",
        "recompute=",
        "recompute=full/",
        "recompute=full/block",
        "recompute=full/block/-1",
        "recompute=full/both/4",
        "recompute=none+mlp",
        "recompute=full+mlp",
        "recompute=core_attn+",
        "sched=",
        "stages=",
        "stages=8,",
        "stages=8*0x2",
        "stages=-1",
        "stages=8*9999," * 10 + "8*9999",
        "prec=",
        "prec",
        "grad=fp64",
        "offload=opt0",
        "offload=opt1.5",
        "offload=opt",
        "offload=opt-0.5",
        "offload=optnan",
        "offload=0.5",
        "offload=opt1e-3",
        "graph=all",
        "overlap=",
        "overlap=grad+none",
        "fw=",
        "=8",
        "8",
        "=",
    ],
)
def test_malformed_words(text: str) -> None:
    with pytest.raises(ConfigError):
        Layout.parse(text)


WORDS = st.sampled_from([*grammar.GRAMMAR, "tp8", "stages=7,8*6", "recompute=full/block/4", "none"])
PIECES = st.one_of(WORDS, st.text("0123456789=*/,+.- \t²٣é\0", max_size=6), st.text(max_size=8))


@given(st.lists(PIECES, max_size=8).map("".join))
@settings(max_examples=250, deadline=None)
def test_junk_is_refused_in_our_own_words(text: str) -> None:
    try:
        layout = Layout.parse(text)
    except ConfigError:
        return
    assert Layout.parse(str(layout)) == layout


# ---- columns -------------------------------------------------------------------------------------


@given(st.lists(LAYOUTS, min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_layouts_survive_as_columns(layouts: list[Layout]) -> None:
    columns = knobs(layouts, [64] * len(layouts), [256] * len(layouts))
    back = [columns.layout(i, x.framework) for i, x in enumerate(layouts)]
    assert back == layouts
    assert columns.size == len(layouts)


@given(st.lists(LAYOUTS, min_size=2, max_size=6), st.randoms())
@settings(max_examples=25, deadline=None)
def test_rows_can_be_taken_in_any_order(layouts: list[Layout], random: object) -> None:
    columns = knobs(layouts, range(1, len(layouts) + 1), [256] * len(layouts))
    index = np.array(random.choices(range(len(layouts)), k=9))  # type: ignore[attr-defined]
    few = columns.take(index)
    assert few.size == 9
    assert few.num_gpus.tolist() == (index + 1).tolist()
    assert [few.layout(i, layouts[j].framework) for i, j in enumerate(index)] == [
        layouts[j] for j in index
    ]
    assert columns.take(slice(1, None)).size == len(layouts) - 1


def test_rows_with_and_without_their_own_stages() -> None:
    texts = ("pp2", "pp2 stages=3,5", "pp4 stages=1,3,3,1", "pp2 stages=3,5")
    layouts = [Layout.parse(x) for x in texts]
    columns = knobs(layouts, [8] * 4, [8] * 4)
    assert columns.stage_table == ((), (3, 5), (1, 3, 3, 1))
    assert columns.stages.tolist() == [0, 1, 2, 1]
    assert [columns.layout(i) for i in range(4)] == layouts


def test_scalars_stay_scalars() -> None:
    columns = knobs([Layout.parse("tp2 pp4 mbs2")] * 3, [64] * 3, [256] * 3)
    one = Knobs(**{f.name: float(getattr(columns, f.name)[0]) for f in KNOB_FIELDS})
    mixed = Knobs(
        **{f.name: getattr(one, f.name) for f in KNOB_FIELDS if f.name != "tp"},
        tp=np.array([1.0, 2.0, 4.0]),
    )
    assert one.size == 1
    assert mixed.size == 3
    assert mixed.take(np.array([2, 0])).tp.tolist() == [4, 1]
    assert np.ndim(mixed.take(np.array([2, 0])).pp) == 0
    assert mixed.layout(2).tensor_model_parallel_size == 4
    assert (one.dp, one.micro_batches) == (8, 16)
    assert mixed.dp.tolist() == [16, 8, 4]


@given(subsets(RECOMPUTE_MODULES), subsets(OVERLAPS), st.sampled_from(grammar.GRANULARITIES))
@settings(deadline=None)
def test_sets_as_bits(
    modules: tuple[str, ...], switches: tuple[str, ...], granularity: str
) -> None:
    layout = Layout(recompute_granularity=granularity, recompute_modules=modules, overlap=switches)
    columns = knobs([layout, Layout()], [1, 1], [1, 1])
    for name in RECOMPUTE_MODULES:
        on = granularity == "selective" and name in modules
        assert columns.module(name).tolist() == [on, 0]
    for name in OVERLAPS:
        assert columns.overlaps(name).tolist() == [name in switches, name in Layout().overlap]
    assert int(modules_mask(modules)).bit_count() == len(modules)
    assert int(overlap_mask(switches)).bit_count() == len(switches)


def test_a_layout_is_a_key() -> None:
    a, b = Layout.parse("tp8 sp pp2"), Layout.parse("pp2 tp8 sp")
    assert {a: 1}[b] == 1
    assert pickle.loads(pickle.dumps(a)) == a
    with pytest.raises(AttributeError):
        a.micro_batch_size = 2  # type: ignore[misc]
