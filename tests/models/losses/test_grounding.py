"""Lyrics' losses against loops over single pairs, in one process and two, and against transformers' BLIP-2."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mg_llava.models.losses import grounding
from mg_llava.models.losses.grounding import AlignmentLoss, CaptionLoss, SpatialLoss, hard_negatives
from mg_llava.models.queries.heads import LyricsHeads, similarity
from mg_llava.models.queries.mq_former import MQFormer, PieceReader, Source
from mg_llava.pieces import Item, PieceKind, Pieces, WordPieces, blank_pieces, stack_pieces
from tests import forked, toy

WORDS = WordPieces(toy.PIECES)
SIZES: dict[str, Any] = dict(width=32, layers=4, heads=4, intermediate=48, vocabulary=len(WORDS), positions=64)
CHANNELS, QUERIES, ROWS = (12, 7), (3, 5), 4


def build(channels: tuple[int, ...] = CHANNELS, queries: tuple[int, ...] = QUERIES) -> Any:
    """What the losses ask of a system."""
    torch.manual_seed(0)
    former = MQFormer(channels, queries, **SIZES, dropout=0.0)
    with torch.no_grad():
        for parameter in former.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    heads = LyricsHeads(SIZES["width"], len(WORDS), embedding=16, temperature=0.5)
    return SimpleNamespace(mq_former=former, heads=heads, pieces=PieceReader(toy.PIECES), device="cpu")


def sources(first: int = 0, rows: int = ROWS) -> list[Source]:
    """Of canvases of a larger batch, each with other numbers of objects."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(8, 9, 12, generator=generator), torch.randn(8, 6, 7, generator=generator)
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 2, 5, 0, 4, 2])[:, None]
    states[1][~mask] = 0
    own = slice(first, first + rows)
    most = max(1, int(mask[own].sum(1).max()))
    return [Source(states[0][own]), Source(states[1][own, :most], mask[own, :most])]


def texts(first: int = 0, rows: int = ROWS) -> Pieces:
    written = []
    for number in range(first, first + rows):
        items = [Item("dog", ("0.1", str(number), "3", str(k))) for k in range(number % 3)]
        written.append(WORDS.caption(items, f"a dog and {number} cats" + " a" * number))
    return stack_pieces(written)


def row(source: Source, number: int) -> Source:
    return source.take(torch.tensor([number]))


def pair(system: Any, own: list[Source], pieces: Pieces, picture: int, text: int) -> tuple[Tensor, Tensor]:
    """Similarity over the temperature, and logits of the match, of one pair."""
    one = pieces.map(lambda part: part[text : text + 1])
    length = int(one.mask.sum())
    one = one.map(lambda part: part[:, :length])
    given = [row(source, picture) for source in own]
    given = [s if s.mask is None or not s.mask.any() else Source(s.states[s.mask][None]) for s in given]
    queries, _ = system.mq_former(given)
    image = F.normalize(system.heads.vision_proj(queries[0]), dim=-1)
    words = F.normalize(system.heads.text_proj(system.mq_former.read(one)[0, 0]), dim=-1)
    best = max(float(query @ words) for query in image)
    both, _ = system.mq_former(given, one)
    return torch.tensor(best) / system.heads.temp, system.heads.itm_head(both[0]).mean(dim=0)


def smoothed(logits: Tensor, label: int, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with a smoothed label, written out."""
    log = logits - torch.logsumexp(logits, 0)
    return -((1 - smoothing) * log[label] + smoothing * log.mean())


def expected(system: Any, first: int, rows: int, count: int) -> tuple[Tensor, Tensor]:
    """ITC and ITM of some rows among ``count``, where the chosen negative of a row is the next one."""
    own, pieces = sources(0, count), texts(0, count)
    table = [[pair(system, own, pieces, i, j) for j in range(count)] for i in range(count)]
    similar = torch.stack([torch.stack([entry[0] for entry in line]) for line in table])
    contrast = [smoothed(similar[i], i) + smoothed(similar[:, i], i) for i in range(first, first + rows)]
    matching = []
    for i in range(first, first + rows):
        other = (i + 1) % count
        for picture, text, label in ((i, i, 1), (other, i, 0), (i, other, 0)):
            matching.append(smoothed(table[picture][text][1], label, 0.0))
    return torch.stack(contrast).mean() / 2, torch.stack(matching).mean()


def next_one(similarities: Tensor, own: Tensor) -> Tensor:
    return (own + 1) % similarities.shape[1]


@pytest.fixture
def choosing_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grounding, "hard_negatives", next_one)


@pytest.mark.usefixtures("choosing_the_next")
def test_alignment_is_a_loop_over_pairs() -> None:
    system = build()
    with torch.no_grad():
        found = AlignmentLoss(contrast=2.0, match=0.5).measure(system, sources(), texts())
        contrast, matching = expected(system, 0, ROWS, ROWS)
    torch.testing.assert_close(found["loss_itc"], 2.0 * contrast, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["loss_itm"], 0.5 * matching, rtol=1e-4, atol=1e-4)
    assert set(AlignmentLoss(match=0).measure(system, sources(), texts())) == {"loss_itc"}
    bare = AlignmentLoss(items=False).measure(system, sources(), texts())
    without = stack_pieces([WORDS.caption([], f"a dog and {n} cats" + " a" * n) for n in range(ROWS)])
    alone = AlignmentLoss().measure(system, sources(), without)
    for name, value in alone.items():
        torch.testing.assert_close(bare[name], value, rtol=1e-4, atol=1e-4)


def in_one_of_two(rank: int, folder: str) -> None:
    """Three rows here and five there: other numbers of rows, objects and pieces."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    grounding.hard_negatives = next_one
    first, rows = ((0, 3), (3, 5))[rank]
    system = build()
    found = AlignmentLoss().measure(system, sources(first, rows), texts(first, rows))
    sum(found.values()).backward()
    torch.save({name: value.detach() for name, value in found.items()}, f"{folder}/{rank}.pt")
    assert all(p.grad is not None for p in system.heads.vision_proj.parameters())
    torch.distributed.destroy_process_group()


def test_two_processes_contrast_all_of_their_rows(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(forked.call, [f"{__name__}.in_one_of_two"] * 2, (0, 1), [str(tmp_path)] * 2))
    system = build()
    for rank, (first, rows) in enumerate(((0, 3), (3, 5))):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        with torch.no_grad():
            contrast, matching = expected(system, first, rows, 8)
        torch.testing.assert_close(found["loss_itc"], contrast, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found["loss_itm"], matching, rtol=1e-4, atol=1e-4)


def test_match_and_similarity_are_those_of_blip2() -> None:
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    system = build((12,), (6,))
    former, heads = system.mq_former.eval(), system.heads
    layers = former.qformer.encoder.layer
    config = Blip2Config(
        vision_config=dict(
            hidden_size=12,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        ),
        qformer_config=layers[0].crossattention.attentions[0].attention.config.to_dict(),
        num_query_tokens=6,
        image_text_hidden_size=16,
    )
    blip = Blip2ForImageTextRetrieval(config).eval()
    state = {
        **{f"qformer.{k.replace('attentions.0.', '')}": v for k, v in former.qformer.state_dict().items()},
        **{f"embeddings.{k}": v for k, v in former.state_dict().items() if k.endswith("embeddings.weight")},
        "query_tokens": former.query_tokens,
        **{f"vision_projection.{k}": v for k, v in heads.vision_proj.state_dict().items()},
        **{f"text_projection.{k}": v for k, v in heads.text_proj.state_dict().items()},
        **{f"itm_head.{k}": v for k, v in heads.itm_head.state_dict().items()},
    }
    missing, unexpected = blip.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("vision_model.") for name in missing)
    pixels = torch.rand(ROWS, 3, 8, 8)
    pieces = texts().without_items()
    kept = stack_pieces([Pieces(*(part[number][pieces.mask[number]] for part in pieces)) for number in range(ROWS)])
    with torch.no_grad():
        own = [Source(blip.vision_model(pixels).last_hidden_state)]
        given = dict(pixel_values=pixels, input_ids=kept.ids, attention_mask=kept.mask.long())
        matched = blip(**given, use_image_text_matching_head=True).logits_per_image
        torch.testing.assert_close(heads.match(former(own, pieces)[0]), matched)
        similar = blip(**given).logits_per_image
        mine = similarity(heads.embed_queries(former(own)[0]), heads.embed_text(former.read(pieces)))
        torch.testing.assert_close(mine, similar)


def test_negatives_are_others_and_near() -> None:
    torch.manual_seed(0)
    similar = torch.tensor([[9.0, 2.0, 0.0, -20.0]])
    drawn = torch.cat([hard_negatives(similar, torch.tensor([0])) for _ in range(4000)])
    assert set(drawn.tolist()) <= {1, 2, 3}
    chances = similar.softmax(1)[0] + 1e-4
    share = chances[1] / chances[1:].sum()
    assert abs((drawn == 1).float().mean() - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    assert hard_negatives(torch.zeros(1, 1), torch.tensor([0])).tolist() == [0]
    similarities, own = torch.randn(50, 9, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 9
    chances = (similarities.softmax(dim=1) + 1e-4).scatter(1, own[:, None], 0.0)
    torch.manual_seed(3)
    wanted = torch.multinomial(chances, 1)[:, 0]
    torch.manual_seed(3)
    assert torch.equal(hard_negatives(similarities, own), wanted)  # the same draw


def test_masks_of_items() -> None:
    torch.manual_seed(0)
    items = [Item("dog cats", ("0.1", "2", "3", "4"))] * 5
    pieces = stack_pieces([WORDS.caption(items, "a dog")] * 400)
    for compat in (False, True):
        masked = SpatialLoss(reference_compat=compat).mask(pieces)
        share = {
            kind: masked[pieces.kinds == kind].float().mean() for kind in PieceKind if (pieces.kinds == kind).any()
        }
        last = PieceKind.CLOSE if compat else PieceKind.Y2
        for kind, found in share.items():
            may = kind in (PieceKind.NAME, PieceKind.X1, PieceKind.Y1, PieceKind.X2, last)
            assert abs(found - 0.15 * may) < 4 * math.sqrt(0.15 * 0.85 / 2000) * may + 1e-9, kind
        for part in range(1, int(pieces.parts.max()) + 1):  # a part as a whole
            of_part = torch.stack([masked[n][pieces.parts[n] == part] for n in range(400)])
            assert (of_part.all(1) == of_part.any(1)).all()
    single = stack_pieces([WORDS.caption(items[:1], "a"), WORDS.caption([], "a")])
    for _ in range(50):
        masked = SpatialLoss(share=1e-9).mask(single)
        assert masked[0].any() and not masked[1].any()
        assert len(single.parts[0][masked[0]].unique()) == 1
    assert not SpatialLoss(share=0.99).mask(texts(0, 1)).any()  # there is no item


@pytest.mark.parametrize("loss", [CaptionLoss(weight=0.5), SpatialLoss(share=0.5)])
def test_targets(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is exactly the caption, or what is masked of the items; nothing else is hidden."""
    system, own, pieces = build(), sources(), texts()
    seen: dict[str, Any] = {}
    plain = grounding.written

    def keep(_: Any, read: Tensor, ids: Tensor, is_target: Tensor, smoothing: float) -> Tensor:
        seen.update(read=read, ids=ids, is_target=is_target, smoothing=smoothing)
        return plain(system, read, ids, is_target, smoothing)

    monkeypatch.setattr(grounding, "written", keep)
    forward, given = system.mq_former.forward, []
    monkeypatch.setattr(system.mq_former, "forward", lambda *a, **k: given.append(a[1].ids) or forward(*a, **k))
    torch.manual_seed(1)
    (value,) = loss.measure(system, own, pieces).values()
    entries = seen["is_target"].nonzero().tolist()
    logits = system.heads.write(seen["read"])
    naive = torch.stack([smoothed(logits[r, t], int(seen["ids"][r, t])) for r, t in entries]).mean()
    torch.testing.assert_close(value, loss.weight * naive)
    if isinstance(loss, CaptionLoss):
        assert seen["is_target"].tolist() == (pieces.kinds[:, 1:] == PieceKind.TEXT).tolist()
        assert torch.equal(given[0][:, 1:], pieces.ids[:, 1:])
        assert (given[0][:, 0] == WORDS.id_of("[DEC]")).all()
        return
    target = seen["is_target"]
    assert target.any() and (given[0][target] == WORDS.id_of("[MASK]")).all()
    filled = torch.where(target, seen["ids"], given[0])
    assert torch.equal(filled, pieces.ids)  # the targets fill the holes


def test_small_batches_have_losses_with_all_gradients() -> None:
    losses = [AlignmentLoss(), CaptionLoss(), SpatialLoss()]
    empty = WORDS.caption([], "")
    for own, pieces in (
        (sources(2, 1), texts(2, 1)),  # nothing to be told apart from
        (sources(0, 2), stack_pieces([WORDS.caption([], "a dog")] * 2)),  # no items
        (sources(0, 2), stack_pieces([empty, empty])),  # no targets
        (sources(0, 1), blank_pieces(1)),
    ):
        system = build()
        found = {name: value for loss in losses for name, value in loss.measure(system, own, pieces).items()}
        assert set(found) == {"loss_itc", "loss_itm", "loss_icg", "loss_msp"}
        total = sum(found.values()) + system.heads.zero()
        assert total.isfinite()
        total.backward()
        for module in (system.mq_former, system.heads):
            assert all(parameter.grad is not None for parameter in module.parameters())
            assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_matching_starts_near_its_prior() -> None:
    """One true pair in three: always saying no costs 0.637."""
    torch.manual_seed(0)
    former = MQFormer(CHANNELS, QUERIES, **SIZES)
    system = SimpleNamespace(mq_former=former, heads=LyricsHeads(32, len(WORDS)))
    with torch.no_grad():
        system.heads.itm_head.weight.zero_()
        system.heads.itm_head.bias.copy_(torch.tensor([2 / 3, 1 / 3]).log())
        found = AlignmentLoss().measure(system, sources(), texts())["loss_itm"]
    assert abs(float(found) - 0.6365) < 1e-3
