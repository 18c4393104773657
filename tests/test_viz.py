"""The visual language and the figures of pools and tables, tested as text: what they say, how they look, what moves."""

import itertools
import random
import re
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paged_core import BlockAllocator, PagedPool, PagedSeqState, PoolLayout
from paged_core.viz import (
    PoolLab,
    Svg,
    chart,
    explore,
    filmstrip,
    locate,
    mirrors,
    pool_map,
    sequence_style,
    snapshot,
    style,
    table_lens,
    tables,
)
from paged_core.viz.free_lists import cost_per_block, fragmentation, longest_run
from paged_core.viz.style import COLORS, DARK, LIGHT, LINE_COLORS, PATTERNS, contrast, letter, line_look, luminance
from paged_core.viz.svg import text_width

SVG = "{http://www.w3.org/2000/svg}"


def parse(svg):
    return ElementTree.fromstring(str(svg))


def words(svg):
    return [node.text for node in parse(svg).iter(f"{SVG}text")]


def fills(svg, color):
    """How many boxes have this fill."""
    return sum(node.get("fill") == color for node in parse(svg).iter(f"{SVG}rect"))


def edges(svg, color):
    """How many thick outlines have this colour of the theme."""
    boxes = parse(svg).iter(f"{SVG}rect")
    return sum(f"s-{color}" in node.get("class", "") and node.get("stroke-width") == "4" for node in boxes)


def assert_well_drawn(svg):
    """What every figure owes its reader: words for those who cannot see it, and nothing outside its edges."""
    root = parse(svg)
    width, height = float(root.get("width")), float(root.get("height"))
    assert root.get("role") == "img"
    assert root.get("aria-label") == repr(svg)
    assert root.find(f"{SVG}title").text == svg.title == words(svg)[0]
    assert root.find(f"{SVG}desc").text == svg.alt
    assert len(svg.alt) > 20
    lines = {}
    for node in root.iter(f"{SVG}text"):
        x, y, size = (float(node.get(name)) for name in ("x", "y", "font-size"))
        assert size >= 11 or len(node.text) <= 2
        left = x - {"middle": 0.5, "end": 1}.get(node.get("text-anchor"), 0) * text_width(node.text, size)
        assert left >= -4 and y <= height, node.text
        right = left + text_width(node.text, size)
        assert right <= width + 4, node.text
        lines.setdefault(y, []).append((left, right, node.text))
    for line in lines.values():
        for one, other in itertools.pairwise(sorted(line)):
            assert one[1] <= other[0] + 4, (one, other)  # they do not run into each other
    for node in root.iter(f"{SVG}rect"):
        if node.get("width") != "100%":
            x, y, w, h = (float(node.get(name)) for name in ("x", "y", "width", "height"))
            assert 0 <= x and x + w <= width and 0 <= y and y + h <= height
    for node in root.iter(f"{SVG}polyline"):
        for point in node.get("points").split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width and 0 <= y <= height


# ---- the language


def test_a_sequence_has_a_letter_a_colour_and_a_mark_of_its_own():
    styles = [sequence_style(i) for i in range(56)]
    assert len({(style.color, style.pattern) for style in styles}) == 56
    assert [style.letter for style in styles[:3]] == ["A", "B", "C"]
    assert [letter(i) for i in (25, 26, 27, 51, 52, 701, 702)] == ["Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA"]
    with pytest.raises(ValueError, match=r"index: .* got -1"):
        sequence_style(-1)


def test_the_first_eight_can_be_told_apart_in_grey():
    for one, other in itertools.combinations(map(sequence_style, range(8)), 2):
        assert one.pattern != other.pattern
    assert len(PATTERNS) == 8 and len(COLORS) == 7


def test_what_is_no_sequence_has_no_sequences_colour():
    """Neither by name nor by number, anywhere in the package."""
    others = {*LINE_COLORS, style.PALE, style.CACHED_COLOR, style.WASTED_COLOR, style.ANYONE_COLOR, *LIGHT, *DARK}
    assert not others & set(COLORS)
    for module in Path(style.__file__).parent.glob("*.py"):
        if module.name != "style.py":
            assert not set(re.findall("#[0-9A-F]{6}", module.read_text(encoding="utf-8").upper())) & set(COLORS), module
    with chart(title="Anything", alt="Lines in the order in which they come.") as (_, ax):
        assert [ax.plot([0, 1])[0].get_color() for _ in LINE_COLORS] == list(LINE_COLORS)


def test_the_lines_of_a_chart_can_be_told_apart_without_colour():
    looks = [line_look(i) for i in range(len(LINE_COLORS))]
    for one, other in itertools.combinations(looks, 2):
        assert one["marker"] != other["marker"] and one["linestyle"] != other["linestyle"]
    for one, other in itertools.pairwise(looks):
        assert contrast(one["color"], other["color"]) >= 1.4
    assert all(contrast(color, LIGHT.paper) >= 3 for color in LINE_COLORS)
    assert all(contrast(color, DARK.paper) >= 3 for color in LINE_COLORS[:2])


def test_luminance_and_contrast_are_those_of_the_standard():
    assert luminance("#000000") == 0 and luminance("#FFFFFF") == pytest.approx(1)
    assert contrast("#000000", "#FFFFFF") == contrast("#FFFFFF", "#000000") == pytest.approx(21)
    assert contrast("#767676", "#FFFFFF") == pytest.approx(4.54, abs=0.01)  # the darkest grey that just passes


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_is_legible(theme):
    assert contrast(theme.ink, theme.paper) >= 12
    for color in (theme.ink, theme.muted, theme.danger):
        assert contrast(color, theme.paper) >= 4.5
    assert contrast(theme.muted, theme.faint) >= 4.5
    assert all(contrast(style.on_color, style.color) >= 4.5 for style in map(sequence_style, range(7)))


# ---- Svg


def test_an_svg_is_an_image_that_an_untrusted_notebook_keeps():
    svg = Svg(300, 100, title='5 < 6 & "so on"', alt="Words & more words, <b>none</b> of them markup.")
    svg.cell(10, 50, 40, 30, sequence_style(1), "B")
    assert_well_drawn(svg)
    bundle = svg._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    box = ElementTree.fromstring(bundle["text/html"].replace('auto"></div>', 'auto"/></div>'))  # well formed
    (image,) = box
    assert box.get("style") == "overflow-x:auto" and "min-width:300px" in image.get("style")
    assert image.tag == "img" and image.get("alt") == bundle["text/plain"] == repr(svg)
    scheme, document = image.get("src").split(",", 1)
    assert scheme == "data:image/svg+xml"
    assert unquote(document) == str(svg)
    assert not set('"<>#&') & set(image.get("src"))


def test_light_and_dark_are_decided_inside_the_picture():
    style = parse(Svg(300, 100, title="Any", alt="Nothing but a title is here.")).find(f"{SVG}style").text
    light, dark = style.split("@media(prefers-color-scheme:dark)")
    for theme, rules in ((LIGHT, light), (DARK, dark)):
        for name, color in theme._asdict().items():
            assert f".f-{name}{{fill:{color}}}" in rules and f".s-{name}{{stroke:{color}}}" in rules


def test_the_title_ends_as_it_likes():
    assert repr(Svg(9, 9, title="Where is it?", alt="There.")) == "Where is it? There."
    assert repr(Svg(9, 9, title="It is there", alt="Here.")) == "It is there. Here."


def test_the_looks_differ_without_colour():
    looks = ["free", "cached", "nan", "empty", *map(sequence_style, range(8))]
    drawn = set()
    for look in looks:
        svg = Svg(100, 100, title="One cell", alt="One cell of a pool, in one look.")
        svg.cell(10, 50, 40, 30, look)
        body = "".join(ElementTree.tostring(node, "unicode") for node in parse(svg).iter(f"{SVG}rect"))
        drawn.add((re.sub("#[0-9A-F]{6}", "grey", body), *re.findall(r"url\(#(\w+)-", str(svg))))
    assert len(drawn) == len(looks)
    svg.cell(10, 50, 40, 30, sequence_style(0), "A", chosen=True)
    assert edges(svg, "ink") == 1


def test_an_arrow_ends_where_it_points():
    svg = Svg(300, 100, title="An arrow", alt="One arrow, to the right.")
    svg.line([(10, 60), (200, 60)], arrow=True)
    tip = parse(svg).find(f"{SVG}polygon").get("points").split()[0]
    assert tip == "200,60"


# ---- pools


@pytest.fixture
def held():
    """A holds 0, 1, 2; B shares 0 and 1 and has 3; one block is held by nobody here."""
    allocator = BlockAllocator(8)
    a = allocator.allocate_n(3)
    allocator.share(a[:2])
    b = [*a[:2], allocator.allocate()]
    allocator.allocate()
    return allocator, a, b


def test_a_snapshot_says_who_holds_what_and_does_not_move(held):
    allocator, a, b = held
    seq = PagedSeqState(4, 8)
    seq.ensure_capacity(allocator, 5)
    pool = snapshot(allocator, [a, b, seq])
    assert pool.ref_counts == (2, 2, 1, 1, 1, 1, 1, 0)
    assert (pool.capacity, pool.in_use, pool.peak_in_use, pool.free) == (8, 7, 7, (7,))
    assert pool.held == ((0, 1, 2), (0, 1, 3), (5, 6))
    assert [pool.holders(block) for block in (0, 2, 4, 7)] == [[0, 1], [0], [], []]
    allocator.free(a)
    assert pool.ref_counts[0] == 2
    assert str(pool) == (
        "A pool of 8 blocks: 7 in use, 1 free, peak 7. A holds 0, 1, 2. B holds 0, 1, 3. C holds 5, 6. Shared: 0, 1. "
        "Next out: 7."
    )


def test_a_pool_map_shows_holders_sharing_the_free_list_and_the_peak(held):
    allocator, a, b = held
    picture = pool_map(snapshot(allocator, [a, b]))
    assert_well_drawn(picture)
    said = words(picture)
    for text in (
        "A 2",
        "B 3",
        "×2",
        "free list: 3 blocks",
        "next out",
        "in use 5 of 8 blocks",
        "peak 5",
        "held elsewhere",
    ):
        assert text in said
    assert fills(picture, sequence_style(0).color) == 3 + 1  # three blocks, one in the legend
    assert edges(picture, "danger") == 0
    allocator.free([b[2]])
    del b[2]
    said = words(pool_map(snapshot(allocator, [a, b])))
    assert "B 3" not in said and "free list: 4 blocks" in said and "peak 5" in said


def test_the_free_list_is_drawn_top_first():
    allocator = BlockAllocator(12)
    allocator.free(allocator.allocate_n(3))
    said = words(pool_map(snapshot(allocator)))
    top = said.index("free list: 12 blocks")
    assert said[top + 1 : top + 7] == ["2", "1", "0", "3", "4", "5"]
    assert "... and 6 below" in said
    assert allocator.allocate_n(4) == [2, 1, 0, 3]


def test_a_block_listed_by_more_than_have_a_reference_is_red(held):
    allocator, a, b = held
    pool = snapshot(allocator, [a, b])
    assert not any(pool.overlisted(block) for block in range(8))
    allocator.free(a)  # and A keeps its list
    pool = snapshot(allocator, [a, b])
    assert [block for block in range(8) if pool.overlisted(block)] == [0, 1, 2]
    picture = pool_map(pool)
    assert edges(picture, "danger") == 3
    assert "Listed by more than have a reference: 0, 1, 2." in picture.alt


@pytest.mark.parametrize("capacity", [0, 1, 8, 41, 129, 700])
def test_pools_of_every_size_are_well_drawn(capacity):
    allocator = BlockAllocator(capacity)
    lists = [allocator.allocate_n(capacity // 9) for _ in range(8)]
    picture = pool_map(snapshot(allocator, lists), chosen=0)
    assert_well_drawn(picture)
    assert len(picture.html) < 250_000
    allocator.allocate_n(allocator.free_count)
    assert "empty" in words(pool_map(snapshot(allocator, lists)))


def test_a_filmstrip_has_a_row_a_moment_and_marks_what_changed():
    allocator, frames = BlockAllocator(6), []
    frames.append(("fresh", snapshot(allocator, [[]])))
    a = allocator.allocate_n(2)
    frames.append(("A takes 2", snapshot(allocator, [a])))
    allocator.free(a)
    frames.append(("A gives them back", snapshot(allocator, [[]])))
    strip = filmstrip(frames, title="Three moments")
    assert_well_drawn(strip)
    said = words(strip)
    assert all(row in said for row, _ in frames)
    assert [text for text in said if re.fullmatch(r"(\d ?)+", text) and len(text) > 1] == [
        "0 1 2 3 4 5",
        "2 3 4 5",
        "1 0 2 3 4 5",
    ]
    assert edges(strip, "ink") == 4  # two taken, two given back; nothing in the first row
    assert strip.alt.startswith("1. fresh: A pool of 6 blocks: 0 in use")


def test_a_block_that_only_changes_hands_has_changed():
    allocator = BlockAllocator(4)
    blocks = allocator.allocate_n(1)
    frames = [("A has it", snapshot(allocator, [blocks, []])), ("B has it", snapshot(allocator, [[], blocks]))]
    assert edges(filmstrip(frames, title="Handed over"), "ink") == 1


def test_many_holders_and_all_that_can_be_said_of_them_fit():
    allocator = BlockAllocator(24)
    lists = [allocator.allocate_n(2) for _ in range(9)]
    allocator.share(lists[0])
    allocator.share(lists[1])
    allocator.free(lists[2])
    allocator.allocate()
    for few in (lists[:4], lists):
        pool = snapshot(allocator, [*few[:-1], few[0]])
        assert_well_drawn(pool_map(pool))
        assert_well_drawn(filmstrip([("the very first", pool), ("and then", pool)], title="Two moments"))


def test_one_sequence_looks_the_same_in_every_figure():
    lab = PoolLab()
    state = snapshot(lab.allocator, lab.seqs)
    figures = [pool_map(state), filmstrip([("now", state)], title="Now"), lab.picture(), mirrors(lab.seqs)]
    for number in range(3):
        style = sequence_style(number)
        for figure in figures:
            assert fills(figure, style.color) > 0
            assert f"url(#{style.pattern}-" in str(figure) or style.pattern == "plain"


# ---- tables


@pytest.mark.parametrize("layout", PoolLayout)
@pytest.mark.parametrize("which", ["k", "v"])
def test_the_byte_is_where_the_number_lies(layout, which):
    lab = PoolLab(layout=layout, head_dim=16, dtype=mx.float32)
    k = mx.random.normal((1, 2, 16), key=mx.random.key(0))
    for seq, token, head in ((lab.seqs[0], 6, 0), (lab.seqs[1], 12, 1), (lab.seqs[2], 0, 1)):
        at = locate(seq, lab.pool, token, head=head, which=which)
        lab.pool.write(0, k, k + 1, mx.array([at.slot], mx.int32))
        memory = np.array(lab.pool.k(0) if which == "k" else lab.pool.v(0)).tobytes()
        (number,) = np.frombuffer(memory, np.float32, 1, at.byte)
        assert number == (k + (which == "v"))[0, head, 0].item()


def test_a_film_follows_one_token_after_the_other():
    lab = PoolLab()
    film = tables.film(snapshot(lab.allocator, lab.seqs), lab.seqs, 0, lab.pool, title="The ten tokens of A", start=6)
    assert len(film.frames) == lab.seqs[0].len == 10 and film.start == 6
    for token, (caption, picture) in enumerate(film.frames):
        at = locate(lab.seqs[0], lab.pool, token)
        assert caption.startswith(f"Token {token} is offset {at.offset} of logical block {at.logical_block}; ")
        assert f"block {at.block}: slot {at.slot}, and, as this pool lies, byte {at.byte:,}." in caption
        assert picture.title == f"Where is token {token} of sequence A?"
    some = tables.film(
        snapshot(lab.allocator, lab.seqs), lab.seqs, 1, lab.pool, title="Some of B", start=12, tokens=[3, 12], which="v"
    )
    assert some.start == 1 and "V of head 0" in words(some.frames[1][1])


def test_the_address_worked_by_hand():
    lab = PoolLab()
    assert lab.seqs[0].blocks == [0, 5, 7]
    assert locate(lab.seqs[0], lab.pool, 6) == (6, 1, 2, 5, 22, 2688, 5376)  # block 5: slots 20..23
    said = words(lab.picture())
    for text in ("6 = 1 × 4 + 2", "table[1] = 5", "slot = 5 × 4 + 2 = 22", "slots of block 5", "logical block 1"):
        assert any(text in line for line in said), text
    assert said[said.index("HND") + 1 :][:2] == ["element 2,688, byte 5,376", "one piece, 128 bytes"]
    # The same token in the other layouts, by their axes: [block, token, head, dim]; [block, head, group,
    # token, 8 dims]; [block, K or V, head, token, dim].
    nhd, split, interleaved = ((5 * 4 + 2) * 2) * 64, ((5 * 2) * 8 * 4 + 2) * 8, ((5 * 2 * 2) * 4 + 2) * 64
    for layout, element, pieces in (
        ("NHD", nhd, "one piece, 128 bytes"),
        ("X_SPLIT", split, "8 pieces of 16 bytes"),
        ("INTERLEAVED", interleaved, "one piece, 128 bytes"),
    ):
        assert said[said.index(layout) + 1 :][:2] == [f"element {element:,}, byte {2 * element:,}", pieces]
        assert f"{layout} {2 * element:,}" in lab.picture().alt
    assert [text for text in said if text in ("20", "21", "22", "23")] == ["20", "21", "22", "23"]


def test_an_address_that_is_not_there_is_refused():
    lab = PoolLab()
    seq = lab.seqs[0]
    for token in (-1, 10):
        with pytest.raises(ValueError, match=f"token: expected a position from 0 to 9, got {token}"):
            locate(seq, lab.pool, token)
    with pytest.raises(ValueError, match="head: expected a KV head from 0 to 1, got 2"):
        locate(seq, lab.pool, 0, head=2)
    with pytest.raises(ValueError, match='which: expected "k" or "v"'):
        locate(seq, lab.pool, 0, which="q")
    other = PagedPool(num_layers=1, num_blocks=16, num_kv_heads=2, block_size=8, head_dim=64)
    with pytest.raises(ValueError, match="block_size 8, got 4"):
        locate(seq, other, 0)


def test_the_lens_shows_another_token_elsewhere():
    lab = PoolLab()
    one = str(lab.picture())
    lab.follow(2)
    assert str(lab.picture()) != one
    lab.follow(6)
    assert str(lab.picture()) == one


def test_a_wrong_entry_of_the_device_is_red_and_said():
    lab = PoolLab()
    seq = lab.seqs[0]

    def lens():
        return table_lens(snapshot(lab.allocator, lab.seqs), lab.seqs, 0, lab.pool, 6)

    assert edges(lens(), "danger") == 0
    seq.block_table[1] = 1
    assert edges(lens(), "danger") == 2  # the entry, and the block the device would read
    assert "The device's entry says 1 instead." in lens().alt
    assert_well_drawn(lens())


def test_mirrors_say_what_is_out_of_step():
    lab = PoolLab()
    assert mirrors(lab.seqs).alt.endswith("All in step.")
    assert_well_drawn(mirrors(lab.seqs))
    _, b, c = lab.seqs
    b.len += 1
    c.block_table[5] = 3  # past the end: not in use, and still not the padding it should be
    picture = mirrors(lab.seqs)
    assert picture.alt.endswith("Out of step: B, C.")
    assert "B: host [1, 2, 3, 4], len 14; device [1, 2, 3, 4, 0, 0, 0, 0], context_lens 13." in picture.alt
    assert edges(picture, "danger") == 1
    b.sync_context_len()
    c.block_table[5] = 0
    assert mirrors(lab.seqs).alt.endswith("All in step.")


@pytest.mark.parametrize("block_size", [1, 3, 16, 17, 64])
def test_tables_of_every_block_size_are_well_drawn(block_size):
    story = tuple((i % 3, 7 + i) for i in range(9))
    lab = PoolLab(num_blocks=200, block_size=block_size, max_blocks_per_seq=90, story=story)
    for index in range(3):
        lab.select(index)
        for token in (0, lab.seq.len // 2, lab.seq.len - 1):
            lab.follow(token)
            assert_well_drawn(lab.picture())


def test_a_long_context_is_well_drawn():
    lab = PoolLab(num_blocks=2100, block_size=64, max_blocks_per_seq=2050, story=((1, 90), (0, 131_000), (2, 9)))
    lab.follow(130_000)
    assert_well_drawn(lab.picture())
    assert "slot = 2033 × 64 + 16 = 130128" in words(lab.picture())


# ---- the explorer


def test_growing_takes_blocks_from_the_top_and_says_so():
    lab = PoolLab()
    assert lab.allocator.free_list[-1] == 8
    lab.grow(3)
    assert (lab.seq.len, lab.seq.blocks) == (13, [0, 5, 7, 8])
    assert lab.message == (
        "A grew by 3 tokens and took block 8 from the top of the free list; "
        "to the device: 4 bytes of table and 4 of length."
    )
    lab.append()
    assert (lab.seq.len, lab.token) == (14, 13)
    assert "grew by 1 token and took no block" in lab.message and "0 bytes of table" in lab.message
    assert lab.seq.context_lens.item() == 14
    assert lab.picture().alt.startswith(lab.message)


def test_release_gives_back_and_leaves_nothing_to_follow():
    lab = PoolLab()
    lab.select(1)
    lab.release()
    assert lab.message == "B gave back blocks 1, 2, 3 and 4; block 4, the last one listed, is the next one out."
    assert lab.allocator.free_list[-1] == 4
    assert lab.token is None
    assert lab.picture().title == "Sequence B holds no token"
    assert_well_drawn(lab.picture())
    lab.release()
    assert lab.message == "B holds no block: nothing to give back."
    lab.append()
    assert lab.seq.blocks == [4] and lab.token == 0


def test_a_full_pool_is_a_sentence_and_changes_nothing():
    lab = PoolLab()
    lab.select(2)
    lab.grow(20)
    before, blocks = snapshot(lab.allocator, lab.seqs), list(lab.seq.blocks)
    lab.select(1)
    lab.grow(16)
    assert lab.refused
    assert lab.message == (
        "Refused: B needs 4 more blocks and 3 of 16 are free. Nothing was taken: release a sequence first."
    )
    assert snapshot(lab.allocator, lab.seqs) == before and lab.seqs[2].blocks == blocks
    picture = lab.picture()
    red = [node.text for node in parse(picture).iter(f"{SVG}text") if "f-danger" in node.get("class", "")]
    assert " ".join(red) == lab.message
    lab.select(1)
    assert not lab.refused


def test_a_short_table_is_a_sentence_and_changes_nothing():
    lab = PoolLab()
    before = snapshot(lab.allocator, lab.seqs)
    lab.grow(23)
    assert lab.refused
    assert lab.message == (
        "Refused: A would hold 33 tokens and its table has room for 32 (8 entries of 4). Nothing was taken."
    )
    assert snapshot(lab.allocator, lab.seqs) == before and lab.seq.len == 10


def test_what_cannot_be_looked_at_is_refused():
    lab = PoolLab()
    with pytest.raises(ValueError, match=r"index: .* 0 to 2, got 3"):
        lab.select(3)
    with pytest.raises(ValueError, match=r"token: .* 0 to 9, got 10"):
        lab.follow(10)


@pytest.mark.parametrize("seed", range(4))
def test_an_hour_of_play(seed):
    lab, rng = PoolLab(), random.Random(seed)
    opening = str(lab.picture())
    for turn in range(120):
        lab.select(rng.randrange(3))
        rng.choice([lab.append, lab.release, lambda: lab.grow(rng.randint(1, 16))])()
        assert lab.message
        held = [block for seq in lab.seqs for block in seq.blocks]
        assert len(held) == len(set(held)) == lab.allocator.in_use
        for seq in lab.seqs:
            assert seq.block_table.tolist()[: len(seq.blocks)] == seq.blocks
            assert seq.context_lens.item() == seq.len
        if turn % 8 == 0:
            if lab.seq.len:
                lab.follow(rng.randrange(lab.seq.len))
            assert_well_drawn(lab.picture())
            assert str(lab.picture()) == str(lab.picture())
    lab.start_over()
    assert str(lab.picture()) == opening


def test_the_controls_only_call_the_verbs():
    explorer = explore()
    lab = explorer.lab

    def assert_shown():
        assert lab.picture().html in explorer.picture.value
        assert 'role="alert"' in explorer.picture.value
        assert explorer.sequence.value == lab.selected
        assert explorer.token.max == max(0, lab.seq.len - 1)
        assert explorer.token.disabled == (lab.token is None)
        assert explorer.token.value == (lab.token or 0)

    assert_shown()
    assert lab.token == 6
    explorer.tokens.value = 7
    explorer.buttons["grow"].click()
    assert lab.seqs[0].len == 17
    assert_shown()
    explorer.token.value = 3
    assert lab.token == 3
    assert_shown()
    explorer.sequence.value = 2
    assert lab.selected == 2 and lab.token == 1
    assert_shown()
    explorer.buttons["append"].click()
    assert lab.seqs[2].len == 3
    assert_shown()
    explorer.buttons["release"].click()
    assert lab.seqs[2].len == 0
    assert_shown()
    explorer.tokens.value = 16
    for _ in range(4):
        explorer.buttons["grow"].click()
        assert_shown()
    assert lab.refused and "Refused" in explorer.picture.value
    explorer.buttons["start_over"].click()
    assert lab.seqs[0].len == 10 and lab.token == 6
    assert_shown()


def test_every_control_can_be_named_and_reached():
    explorer = explore()
    controls = [*explorer.buttons.values(), explorer.sequence, explorer.token, explorer.tokens]
    assert all(control.description or len(control.options) == len(control.tooltips) for control in controls[:5])
    assert all(control.description and control.tooltip for control in (explorer.token, explorer.tokens))
    assert all(button.tooltip for button in explorer.buttons.values())
    rows = explorer.widget.children
    assert set(controls) == {control for row in rows[:-1] for control in row.children}
    assert rows[-1] is explorer.picture


def test_where_no_kernel_runs_the_explorer_is_its_first_picture():
    bundle = explore()._repr_mimebundle_()
    assert bundle["text/html"].startswith(PoolLab().picture().html)
    assert "With a running kernel this picture has controls" in bundle["text/html"]
    assert bundle["text/plain"] == repr(PoolLab().picture()) == repr(explore())
    assert "application/vnd.jupyter.widget-view+json" in bundle


# ---- charts


def test_a_chart_is_a_png_with_alternative_text():
    with chart(1, 2, title="Two panels", alt="Both are empty.", size=(4, 2)) as (picture, axes):
        axes[0].plot([0, 1], [1, 0])
    data, metadata = picture._repr_mimebundle_()
    assert b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == metadata["image/png"]["alt"] == "Two panels. Both are empty."
    assert picture.figure.get_suptitle() == "Two panels"
    assert picture.png() == picture.png()
    assert picture.figure.get_facecolor()[:3] == (1, 1, 1)  # its own paper, whatever page it stands on


def test_a_chart_can_be_read_where_a_png_has_no_alternative_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    with chart(title="a < b", alt="One empty panel.", size=(3, 2)) as (picture, _):
        pass
    picture._ipython_display_()
    (image, options), (text, _) = shown
    assert (image, options["metadata"]) == picture._repr_mimebundle_() and options["raw"]
    assert text["text/html"] == "<details><summary>In words</summary>a &lt; b. One empty panel.</details>"


def test_looking_costs_nothing_until_one_looks():
    code = "import sys, paged_core.viz; print({'matplotlib', 'ipywidgets', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
    code = (
        "import sys; from paged_core.viz import chart\n"
        "with chart(title='a', alt='b') as _: pass\n"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@given(st.sets(st.integers(0, 40)))
def test_the_longest_run_of_neighbours(blocks):
    plain = max((n for n in range(1, 42) for start in range(41) if set(range(start, start + n)) <= blocks), default=0)
    assert longest_run(blocks) == longest_run(tuple(blocks)) == plain


def test_figures_of_the_free_list_say_what_they_show():
    allocator = BlockAllocator(200)
    lists = [allocator.allocate_n(20) for _ in range(6)]
    allocator.free(lists.pop(2))
    picture = fragmentation(snapshot(allocator, lists), [200, 120, 100], [200, 100, 80], title="Apart")
    assert "200 blocks in 4 rows of 64: 100 in use, 100 free" in picture.alt
    left, right = picture.figure.axes
    assert left.get_xlabel() and left.get_ylabel() and right.get_xlabel() and right.get_ylabel() == "blocks"
    image = left.images[0].get_array()
    orange = np.array([int(sequence_style(0).color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    assert (np.abs(image - orange).max(axis=2) < 1e-9).sum() == 20  # the blocks of A, in A's colour
    assert sequence_style(0).color not in [line.get_color() for line in right.lines]  # neither line is A's
    measured = cost_per_block({256: 300.4, 1024: 310.0}, title="Cost")
    assert measured.alt == "256 blocks: 300 ns; 1,024 blocks: 310 ns"
    assert measured.figure.axes[0].get_ylabel() == "ns per block"
