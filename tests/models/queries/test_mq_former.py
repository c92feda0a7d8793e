"""The MQ-Former against transformers' Q-Former, and who sees whom in its passes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2TextEmbeddings

from mg_llava.models.queries.mq_former import GroupedCrossAttention, MQFormer, Sees, Source
from mg_llava.pieces import Item, PieceKind, Pieces, WordPieces, blank_pieces, stack_pieces

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", *"0123456789", ".", "dog", "cat", "a", "and", "##s"]
SIZES: dict[str, Any] = dict(width=32, layers=4, heads=4, intermediate=48, vocabulary=40, positions=64, dropout=0.0)


def build(channels: tuple[int, ...] = (12, 7), queries: tuple[int, ...] = (3, 5)) -> MQFormer:
    torch.manual_seed(0)
    former = MQFormer(channels, queries, **SIZES).eval()
    with torch.no_grad():
        for parameter in former.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)  # as small as they are drawn masks would hardly matter
    return former


def stock_of(former: MQFormer, group: int) -> Blip2QFormerModel:
    """Transformers' Q-Former with the weights of one group."""
    config = former.qformer.encoder.layer[0].crossattention.attentions[group].attention.config
    stock = Blip2QFormerModel(config).eval()
    state = {}
    for name, tensor in former.qformer.state_dict().items():
        if ".crossattention.attentions." not in name:
            state[name] = tensor
        elif f".attentions.{group}." in name:
            state[name.replace(f"attentions.{group}.", "")] = tensor
    stock.load_state_dict(state)
    return stock


def sources(rows: int = 2) -> list[Source]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(rows, 6, dtype=torch.bool)
    mask[-1, 4:] = False
    first = Source(torch.randn(rows, 9, 12, generator=generator))
    return [first, Source(torch.randn(rows, 6, 7, generator=generator), mask)]


def text() -> Pieces:
    words = WordPieces(WORDS)
    item = Item("dog", ("0.1", "2", "30", "4"))
    return stack_pieces([words.caption([item], "a dog and cats"), words.caption([], "a cat")])


def test_one_group_is_the_stock_q_former_bit_by_bit() -> None:
    own = sources()
    for channels, queries in (((12,), (4,)), ((12, 7), (4, 0))):
        former = build(channels, queries)
        stock = stock_of(former, 0)
        given = own[: len(channels)]
        states = own[0].states
        queried, _ = former(given)
        hidden = former.query_tokens.expand(2, -1, -1)
        assert torch.equal(queried, stock(hidden, encoder_hidden_states=states).last_hidden_state)

        pieces = text()
        embed = Blip2TextEmbeddings(stock.config)
        embed.load_state_dict({k: v for k, v in former.state_dict().items() if k.endswith("embeddings.weight")})
        mask = torch.cat([torch.ones(2, 4), pieces.mask.float()], dim=1)
        both = embed(pieces.ids, pieces.positions, hidden)
        expected = stock(both, query_length=4, attention_mask=mask, encoder_hidden_states=states).last_hidden_state
        queried, read = former(given, pieces)
        assert torch.equal(torch.cat([queried, read], dim=1), expected)
        alone = embed(pieces.ids, pieces.positions)
        expected = stock(alone, query_length=0, attention_mask=pieces.mask.float()).last_hidden_state
        assert torch.equal(former.read(pieces), expected)


def test_groups_read_their_own_source() -> None:
    """A group that the others are hidden from is the stock Q-Former with its source, up to rounding."""
    former, own = build(), sources()
    reach = torch.block_diag(torch.ones(3, 3), torch.ones(5, 5)).expand(2, 8, 8)
    masks = [torch.ones(2, 9), own[1].mask.float()]  # type: ignore[union-attr]
    hidden = former.query_tokens.expand(2, -1, -1)
    states = [source.states for source in own]
    given = former._encode(hidden, reach, query_length=8, encoder_hidden_states=states, encoder_attention_mask=masks)
    for group, rows in enumerate((slice(0, 3), slice(3, 8))):
        alone = stock_of(former, group)(
            hidden[:, rows], encoder_hidden_states=own[group].states, encoder_attention_mask=masks[group]
        )
        torch.testing.assert_close(given[:, rows], alone.last_hidden_state, atol=2e-5, rtol=1e-5)
    # padding of a source is not read, and its tokens are
    changed = own[1].states.clone()
    changed[1, 4:] = 5
    plain, _ = former(own)
    torch.testing.assert_close(former([own[0], Source(changed, own[1].mask)])[0], plain)
    changed[1, 0] = 5
    assert not torch.allclose(former([own[0], Source(changed, own[1].mask)])[0][1], plain[1], atol=1e-3)


def gradient(former: MQFormer, pieces: Pieces, sees: Sees, of: str) -> Tensor:
    """Gradient of an output by the embeddings of the text, (N, T, w)."""
    kept: list[Tensor] = []

    def keep(_: Any, given: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = former.word_embeddings.register_forward_hook(keep)
    queried, read = former(sources(), pieces, sees)
    handle.remove()
    weights = torch.randn(read.shape if of == "text" else queried.shape, generator=torch.Generator().manual_seed(2))
    if of == "text":  # of one position alone
        weights[:, :3] = weights[:, 4:] = 0
    ((read if of == "text" else queried) * weights).sum().backward()
    assert kept[0].grad is not None
    return kept[0].grad


def test_no_text_reaches_the_queries_when_captions_are_written() -> None:
    former, pieces = build(), text()
    plain, _ = former(sources())
    for sees in ("left", "queries"):
        assert not gradient(former, pieces, sees, "queries").any()
        queried, _ = former(sources(), pieces, sees)
        torch.testing.assert_close(queried, plain, atol=2e-5, rtol=1e-5)
    assert gradient(former, pieces, "all", "queries").any()

    left = gradient(former, pieces, "left", "text")[0]  # of the fourth piece of the first row
    assert left[:4].any() and not left[4:].any()
    everything = gradient(former, pieces, "queries", "text")[0]
    assert everything[4:].any()
    assert not gradient(former, pieces, "all", "queries")[1][3:].any()  # padding


@pytest.mark.parametrize("sees", ["left", "queries"])
def test_text_reads_the_queries(sees: Sees) -> None:
    former, pieces, own = build(), text(), sources()
    _, read = former(own, pieces, sees)
    _, other = former([Source(own[0].states + 1), own[1]], pieces, sees)
    assert not torch.allclose(read, other, atol=1e-3)


def test_start_of_the_queries() -> None:
    torch.manual_seed(0)
    drawn = MQFormer((12, 7), (8, 24), **SIZES).query_tokens
    assert 0.018 < drawn.std() < 0.022 and abs(drawn.mean()) < 0.002
    assert not MQFormer((12,), (8,), **SIZES, reference_compat=True).query_tokens.any()
    with pytest.raises(ValueError, match=r"2 groups of queries \[32, 64\] for 1 sources of \(5,\) channels"):
        MQFormer((5,), (32, 64), **SIZES)
    layers = build().qformer.encoder.layer
    assert [isinstance(getattr(layer, "crossattention", None), GroupedCrossAttention) for layer in layers] == [
        *(True, False, True, False)
    ]


def test_rows_of_pieces() -> None:
    words = WordPieces(WORDS)
    first, second = Item("cats", ("0.1", "2", "30", "4")), Item("dog", ("1", "2", "3", "4"))
    row = words.caption([first, second], "a dog [DEC]")
    written = [words.words[number] for number in row.ids]
    item = ["cat", "##s", "[", "0", ".", "1", "2", "[UNK]", "4", "]", "[SEP]"]
    assert written[:12] == ["[CLS]", *item] and written[12:22] == "dog [ 1 2 3 4 ] [SEP] a dog".split()[:10]
    kinds = [PieceKind(kind).name for kind in row.kinds.tolist()]
    assert kinds[:12] == "START NAME NAME OPEN X1 X1 X1 Y1 X2 Y2 CLOSE END".split()
    assert row.parts.tolist()[:12] == [0, 1, 1, 2, 3, 3, 3, 4, 5, 6, 7, 0]
    assert row.parts.max() == 14
    items = 1 + 11 + 8
    assert row.positions.tolist()[:items] == list(range(items))  # the caption starts again
    assert row.positions.tolist()[items:] == list(range(1, len(written) - items + 1))
    # items are left out as wholes, the caption is cut
    short = words.caption([first, second], "a dog and a cat", most=19, most_of_caption=2)
    assert [words.words[number] for number in short.ids] == ["[CLS]", *item, "a", "dog"]
    assert len(words.caption([first, second], "", most=20).ids) == 20
    bare = row.without_items()
    kept = bare.mask
    alone = words.caption([], "a dog [DEC]")
    assert bare.ids[kept].tolist() == alone.ids.tolist() and bare.positions[kept].tolist() == alone.positions.tolist()

    asked = words.question("a dog and cats", most=5)
    assert [words.words[number] for number in asked.ids] == ["[CLS]", "and", "cat", "##s", "[SEP]"]
    assert words.words[words.id_of("[DEC]")] == "[DEC]" and len(words) == len(WORDS) + 1
    assert blank_pieces(3).mask.all() and blank_pieces(3).ids.shape == (3, 1)
    with pytest.raises(ValueError, match=r"the list of words lacks \[MASK\]"):
        WordPieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    with pytest.raises(ValueError, match="no WordPiece vocabulary can be read from nowhere/at/all"):
        WordPieces("nowhere/at/all")


def test_items_hidden_are_items_absent() -> None:
    """A row whose items are hidden reads as one without items."""
    former, words = build(), WordPieces(WORDS)
    item = Item("dog", ("1", "2", "3", "4"))
    hidden = stack_pieces([words.caption([item], "a cat")]).without_items()
    alone = stack_pieces([words.caption([], "a cat")])
    one = [source.take(torch.tensor([1])) for source in sources()]
    torch.testing.assert_close(former(one, hidden)[0], former(one, alone)[0])
    torch.testing.assert_close(former.read(hidden)[:, 0], former.read(alone)[:, 0])


def test_start_from_a_bert(tmp_path: Path) -> None:
    """The text side is BERT's own, and the queries' networks are copies of it."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48)
    bert = BertModel(BertConfig(vocab_size=39, max_position_embeddings=64, **sizes, type_vocab_size=1)).eval()
    with torch.no_grad():
        bert.embeddings.token_type_embeddings.weight.zero_()  # which a Q-Former lacks
        for parameter in bert.parameters():
            parameter.mul_(5)
    bert.save_pretrained(tmp_path / "bert")
    former = MQFormer((12, 7), (3, 5), **SIZES, bert=str(tmp_path / "bert")).eval()  # of 40 words
    pieces = text()
    with torch.no_grad():
        expected = bert(pieces.ids, attention_mask=pieces.mask.long(), position_ids=pieces.positions).last_hidden_state
        torch.testing.assert_close(former.read(pieces), expected, atol=1e-4, rtol=1e-4)
    layer = former.qformer.encoder.layer[1]
    assert torch.equal(layer.intermediate_query.dense.weight, layer.intermediate.dense.weight)
    assert former.query_tokens.std() > 0.01
    with pytest.raises(ValueError, match=r"is no BERT to start .*word_embeddings.weight has shape \(39, 32\), not"):
        MQFormer((12,), (3,), **{**SIZES, "width": 16}, bert=str(tmp_path / "bert"))
    assert "bert" not in MQFormer.portable({"queries": [3], "bert": "here"})
