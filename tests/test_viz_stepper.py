"""The stepper: what it says of a traced decode is what arithmetic says, and its pictures show it."""

from xml.etree import ElementTree

import pytest

from paged_core import PoolLayout, trace
from paged_core.cases import paged_case
from paged_core.executors import simulator
from paged_core.viz import stepper

pytestmark = pytest.mark.skipif(simulator.why_not() is not None, reason=str(simulator.why_not()))


def scene(**changed):
    options = {"context_lens": [10], "head_dim": 64, "block_size": 3, "num_q_heads": 2, "num_kv_heads": 1}
    case = paged_case(**{**options, **changed})
    return stepper.Scene(case, trace(**case.arguments))


@pytest.fixture(scope="module")
def ten():
    return scene()


def words(picture):
    return [element.text for element in ElementTree.fromstring(str(picture)).iter() if element.tag.endswith("}text")]


def test_an_access_is_what_the_lanes_do_side_by_side(ten):
    loads = [access for access in ten.accesses(0, 0) if access.buffer == "k_pool"]
    block = ten.case.seqs[0].blocks[0]
    # Token 0 is the first of its block; its 64 dims are two loads of 32 lanes, each two lines of 64 bytes.
    assert [access.elements.tolist() for access in loads[:2]] == [
        list(range(block * 3 * 64, block * 3 * 64 + 32)),
        list(range(block * 3 * 64 + 32, block * 3 * 64 + 64)),
    ]
    assert all(access.lanes.tolist() == list(range(32)) and access.cache_lines.size == 2 for access in loads)
    assert len(loads) == 4 * 2  # a tile of four keys
    assert {access.line for access in loads} == {loads[0].line}


def test_every_record_is_in_some_access(ten):
    accesses = [access for g in range(8) for access in ten.accesses(0, g, constants=True)]
    assert sum(access.lanes.size for access in accesses) == len(ten.trace)
    assert [access.buffer for access in ten.accesses(0, 5)][:5] == ["context_lens", "q", "q", "q", "q"]


def test_tokens_are_dealt_out_in_tiles_of_four(ten):
    loads = [stepper.key_loads(ten, 0, simdgroup) for simdgroup in range(8)]
    # The last tile has two keys, 8 and 9; it is filled up with the last one.
    assert loads == [{0: 1, 1: 1, 2: 1, 3: 1}, {4: 1, 5: 1, 6: 1, 7: 1}, {8: 1, 9: 3}, {}, {}, {}, {}, {}]


def test_counts_are_those_of_arithmetic(ten):
    counts = stepper.loads_by_buffer(ten)
    assert counts["k_pool"] == (3 * 4 * 64, 0, 10 * 64, 3 * 4 * 4)  # 12 keys of 256 bytes: 4 lines each
    assert counts["v_pool"][:3] == counts["k_pool"][:3]
    assert counts["out"].stores == counts["out"].distinct == 2 * 64
    assert counts["q"].loads == 8 * 2 * 64  # by each of the 8 simdgroups


def test_places_follow_the_layout():
    split = scene(layout=PoolLayout.X_SPLIT, block_size=16)
    values = [access for access in split.accesses(0, 0) if access.buffer == "v_pool"]
    assert [access.cache_lines.size for access in values] == [32] * 8  # a line for every lane
    block = split.case.seqs[0].blocks[0]
    assert split.places(values[0]) == [(block, 0, 0, 0, 31)]
    assert split.owner(block, 9) == (0, 9) and split.owner(block, 10) is None


def test_words_and_picture_of_a_load_of_k(ten):
    number, access = next((i, a) for i, a in enumerate(ten.accesses(0, 0)) if a.buffer == "k_pool")
    block = ten.case.seqs[0].blocks[0]
    sentence = f"K of token 0 (block {block}, slot 0), KV head 0, dims 0 to 31"
    assert ten.sentence(access, 0) == sentence
    shown = words(stepper.step_picture(ten, number))
    assert f"Lanes 0 to 31 read {sentence}" in shown and "2 cache lines of 64 bytes, used whole" in shown
    assert [text for text in shown if text.isdigit()].count("31") == 1
    assert any("pool.k_dim(dim)" in text for text in shown)  # the line of the kernel


def test_every_access_has_words_and_a_picture(ten):
    for number, access in enumerate(ten.accesses(0, 1)):
        picture = stepper.step_picture(ten, number, simdgroup=1)
        ElementTree.fromstring(str(picture))
        assert ten.sentence(access, 0) in picture.alt
    with pytest.raises(ValueError, match="step"):
        stepper.step_picture(ten, 10_000)


def test_one_lane_writes_and_many_write(ten):
    for number, access in enumerate(ten.accesses(0, 0)):
        alt = stepper.step_picture(ten, number).alt
        assert alt.startswith("Lane 0 writes " if access.buffer in ("top", "total") and access.is_write else "Lanes ")


def test_one_element_for_all_lanes_is_said_so(ten):
    number = next(i for i, a in enumerate(ten.accesses(0, 0)) if a.buffer == "block_tables")
    assert "1 cache line of 64 bytes: one element, for all lanes at once" in words(stepper.step_picture(ten, number))


def test_the_map_of_work_names_the_idle(ten):
    shown = words(stepper.work_map(ten, title="Who"))
    assert shown.count("nothing to do") == 5 and "K ×3" in shown
    assert shown.count("K") == 9


def test_at_a_real_size_the_map_draws_stretches():
    picture = stepper.work_map(scene(context_lens=[70], block_size=16), title="Who")
    assert "simdgroup 0: 0 to 3, 32 to 35, 64 to 67; simdgroup 1: 4 to 7, 36 to 39, 68 to 68, 69 to 69;" in picture.alt
    assert {"12 keys", "10 keys", "8 keys"} <= set(words(picture))


def test_simdgroups_add_up_in_turn(ten):
    picture = stepper.turns(ten, "acc", title="Turns")
    stays = picture.alt.removeprefix("In this order: ").rstrip(".").split("; ")
    assert stays[:3] == [f"simdgroup {g}: {0 if g == 0 else 128} loads, 128 stores" for g in range(3)]


def test_a_listing_counts_every_line(ten):
    text = stepper.listing(ten, "Logits: each lane", "simd_sum")
    row = next(row for row in text.splitlines() if "k_dim" in row)
    assert row.split()[0] == "768"
    with pytest.raises(ValueError, match="no passage"):
        stepper.listing(ten, "no such line", "simd_sum")


def test_the_film_is_every_access_of_a_simdgroup(ten):
    film = stepper.film(ten, simdgroup=1, start=7, title="Simdgroup 1")
    accesses = ten.accesses(0, 1)
    assert len(film.frames) == len(accesses) and film.start == 7
    for number, ((caption, picture), access) in enumerate(zip(film.frames, accesses, strict=True), 1):
        assert ten.sentence(access, 0) in caption and caption == picture.alt
        assert picture.title.startswith(f"Simdgroup 1, access {number} of {len(accesses)}: ")
        assert ten.sentence(access, 0) not in "".join(words(picture)[1:])  # the caption says it
    assert len(film.html) < 250_000
