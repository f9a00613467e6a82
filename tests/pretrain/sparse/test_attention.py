"""Attention on strips: what is over all visible positions is admitted, and everything else is refused."""
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from common.convvit import ConvViT
from pretrain import encoder as encoders
from pretrain.check import check
from pretrain.convmae import ConvMAE
from pretrain.encoder import SparseEncoder
from pretrain.spark import SparK, build_spark
from pretrain.sparse import attention, rules
from pretrain.sparse.refused import AttentionRefused
from tests.pretrain.sparse.networks import Call, Pyramid

SIZE = (64, 64)  # 8 x 8 cells of 8 pixels
WIDTH = 12


def tokens_of(x):
    return x.flatten(2).transpose(1, 2)


def map_of(tokens, like):
    return tokens.transpose(1, 2).reshape(like.shape)


def attend(tokens, keys=None, bias=None):
    """Softmax attention of (B, N, C), of keys where they are given, without weights."""
    keys = tokens if keys is None else keys
    scores = tokens @ keys.transpose(1, 2) if bias is None else tokens @ keys.transpose(1, 2) + bias
    return tokens + scores.softmax(2) @ keys


def on_tokens(function):
    return Call(lambda x: map_of(function(tokens_of(x)), x))


def fused(x):
    tokens = tokens_of(x)
    return x + map_of(F.scaled_dot_product_attention(tokens, tokens, tokens), x)


class Attention(nn.Module):
    """With weights, norms, and a scale of the branch that starts near zero."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.gamma = nn.Parameter(torch.full((1, 1, width), 1e-6))

    def forward(self, x):
        tokens = self.norm(tokens_of(x))
        return x + map_of(self.gamma * self.attn(tokens, tokens, tokens)[0], x)


class ClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, x):
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens_of(x)], 1)
        return map_of(attend(tokens)[:, 1:], x)


class ReducedKeys(nn.Module):
    """Spatial reduction, as in PVT, by windows of a side."""

    def __init__(self, side):
        super().__init__()
        self.reduce = nn.Conv2d(WIDTH, WIDTH, side, side)

    def forward(self, x):
        return map_of(attend(tokens_of(x), tokens_of(self.reduce(x))), x)


class Channels(nn.Module):
    """Attention over channels, as in XCiT: a mean over all positions decides it."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1, 1))

    def forward(self, x):
        one = F.normalize(x.flatten(2), dim=2)
        return x + ((one @ one.transpose(1, 2) * self.temperature).softmax(2) @ x.flatten(2)).view_as(x)


def linear(tokens):
    """Linear attention, in float32 by itself, as EfficientViT's."""
    kernel, dtype = tokens.float().relu(), tokens.dtype
    return tokens + (kernel @ (kernel.transpose(1, 2) @ tokens.float()) / (1 + kernel.sum(1, keepdim=True))).to(dtype)


class Additive(nn.Module):
    """SwiftFormer's: tokens are weighted by one number each."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, 1))

    def forward(self, x):
        tokens = tokens_of(x)
        weights = F.normalize(tokens @ self.weight, dim=1)
        return x + map_of(tokens * (weights * tokens).sum(1, keepdim=True), x)


class Conditioned(nn.Module):
    """Positions by a convolution, in front of attention."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)

    def forward(self, x):
        return fused(x + self.conv(x))


class Table(nn.Module):
    """A table of positions for maps of a shape, in front of attention. how: what is done with it."""

    def __init__(self, shape, how):
        super().__init__()
        self.how = how
        self.table = nn.Parameter(0.02 * torch.randn(1, WIDTH, *shape))

    def forward(self, x):
        return fused(self.how(x, self.table))


def add_resized(x, table):
    return x + F.interpolate(table, x.shape[2:], mode='bicubic')


def add_tokens(x, table):
    return map_of(tokens_of(x) + tokens_of(table), x)


@pytest.mark.parametrize('at', [1, 2])
@pytest.mark.parametrize('odd', [
    lambda: Call(fused), lambda: on_tokens(attend), Attention, ClassToken, Channels, Conditioned,
    lambda: on_tokens(linear),
], ids=['fused', 'plain', 'weights', 'class_token', 'channels', 'conditioned', 'linear'])
def test_attention_over_all_positions_is_admitted(odd, at):
    torch.manual_seed(0)
    network = Pyramid(odd(), at)
    encoder = SparseEncoder(network, SIZE)
    assert encoder.has_attention and encoder.grid == (8, 8)
    report = check(network, 64)
    assert report.ok, str(report)
    assert report.worst < 1e-8 or 'computes in float32' in str(report)


@pytest.mark.parametrize('odd', [
    Additive, lambda: ReducedKeys(2),
    lambda: Table((16, 16), add_resized), lambda: Table((5, 4), add_resized), lambda: Table((16, 16), add_tokens),
    lambda: Table((16, 16), lambda x, table: x + table),
], ids=['additive', 'reduced', 'resized', 'of_another_size', 'tokens', 'added'])
def test_so_are_means_reduced_keys_and_tables(odd):
    torch.manual_seed(0)
    network = Pyramid(odd())
    assert SparseEncoder(network, SIZE).grid == (8, 8)
    report = check(network, 64)
    assert report.ok and report.worst < 1e-8, str(report)


def test_additive_attention_is_none_of_convmae_which_says_so_truly():
    encoder = SparseEncoder(Pyramid(Additive()), SIZE)
    with pytest.raises(ValueError, match='Pyramid has no attention .*by products of queries and keys.*--method=spark'):
        ConvMAE(encoder)


def test_attention_whose_heads_have_the_shape_of_a_strip_is_admitted():
    """Tokens (B, heads, k*p*p, width of a head) are no map where p*p is that width."""
    def in_heads(x):
        tokens = tokens_of(x).unflatten(2, (3, 4)).transpose(1, 2)
        return x + F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(2, 3).reshape(x.shape)

    assert SparseEncoder(Pyramid(Call(in_heads)), SIZE).has_attention


# -- what is refused --------------------------------------------------------------------------------------------------

def windows(x, side):
    """Attention in windows, of the whole map where that is smaller, else of a map that is padded to them."""
    (B, C, H, W), (a, b) = x.shape, (min(side, x.shape[2]), min(side, x.shape[3]))
    padded = F.pad(x, (0, -W % b, 0, -H % a))
    h, w = padded.shape[2] // a, padded.shape[3] // b
    tokens = padded.reshape(B, C, h, a, w, b).permute(0, 2, 4, 3, 5, 1).reshape(-1, a * b, C)
    out = attend(tokens).reshape(B, h, w, a, b, C).permute(0, 5, 1, 3, 2, 4).reshape(B, C, h * a, w * b)
    return out[:, :, :H, :W]


def unpadded_windows(x, side):
    """The same, of tokens, where no operator betrays the padding."""
    B, C, H, W = x.shape
    tokens = tokens_of(x)
    fill = -tokens.shape[1] % (side * side)
    tokens = torch.cat([tokens, tokens.new_zeros(B, fill, C)], 1).view(-1, side * side, C)
    return map_of(attend(tokens).reshape(B, -1, C)[:, :H * W], x)


def rows(x):
    return attend(x.permute(0, 2, 3, 1).flatten(0, 1)).view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def distances(count, width):
    """A bias by the distance of positions of a map of a width."""
    places = torch.stack([torch.arange(count) // width, torch.arange(count) % width], 1).double()
    return -torch.cdist(places, places)


def biased(x):
    return map_of(attend(tokens_of(x), bias=distances(x[0, 0].numel(), x.shape[3]).to(x)), x)


def waves(x):
    places = torch.arange(x[0, 0].numel(), device=x.device)
    return fused(x + 0.1 * torch.sin(places % x.shape[3] * 1.0).view(x.shape[2:]).to(x))


def reduced_on_a_square(tokens):
    """Keys from tokens that are taken for a square map."""
    side = round(tokens.shape[1] ** 0.5)
    maps = F.avg_pool2d(tokens.transpose(1, 2).reshape(*tokens.shape[::2], side, -1), 2)
    return attend(tokens, tokens_of(maps))


def in_blocks(tokens, count=16):
    """Blocks of tokens in their order, where they fit."""
    B, N, C = tokens.shape
    return attend(tokens) if N % count else attend(tokens.reshape(-1, count, C)).reshape(B, N, C)


class Blocks(nn.Module):
    """Blocks of 32 positions, where the number of positions is a multiple of 64."""

    def forward(self, x):
        tokens = tokens_of(x)
        return map_of(attend(tokens) if tokens.shape[1] % 64 else in_blocks(tokens, 32), x)


def in_blocks_if_few(tokens):
    return in_blocks(tokens, 4) if tokens.shape[1] < 100 else attend(tokens)


@pytest.mark.parametrize('at', [1, 2])
@pytest.mark.parametrize('odd', [
    Call(lambda x: windows(x, 4)), Call(lambda x: windows(x, 7)), Call(lambda x: unpadded_windows(x, 2)),
    Call(lambda x: unpadded_windows(x, 3)), Call(rows), Call(biased), Call(waves),
    on_tokens(lambda tokens: attend(tokens, F.avg_pool1d(tokens.mT, 4, 4).mT)),
    on_tokens(lambda tokens: attend(tokens, tokens[:, ::3])),
    on_tokens(lambda tokens: attend(tokens, tokens[:, :tokens.shape[1] // 2])),
    on_tokens(lambda tokens: attend(tokens, tokens[:, :20])),
    on_tokens(lambda tokens: attend(tokens, F.adaptive_avg_pool1d(tokens.mT, 8).mT)),
    on_tokens(lambda tokens: attend(tokens, bias=torch.ones(tokens.shape[1], tokens.shape[1]).tril().log().to(tokens))),
    on_tokens(lambda tokens: attend(tokens + 1e-4 * tokens.cumsum(1))),
    Call(lambda x: F.scaled_dot_product_attention(x, x, x)),
    on_tokens(reduced_on_a_square), on_tokens(in_blocks), on_tokens(in_blocks_if_few),
    Call(lambda x: attend(F.unfold(x, 3, padding=1).mT).mT[:, :WIDTH].reshape(x.shape)),
], ids=['windows', 'windows_that_fit_few_cells', 'windows_of_tokens', 'padded_windows_of_tokens', 'rows', 'bias', 'waves',
        'pooled_in_a_row', 'strided', 'half', 'the_first', 'pooled_to_a_number', 'causal', 'a_little', 'heads', 'square',
        'blocks', 'blocks_if_few', 'unfolded'])
def test_what_is_not_over_all_positions_is_refused(odd, at):
    with pytest.raises(AttentionRefused, match='Pyramid cannot be pretrained sparsely as it is: .*--method=a2mim'):
        SparseEncoder(Pyramid(odd, at), SIZE)


@pytest.mark.parametrize('how', [
    lambda x, table: map_of(tokens_of(x) + tokens_of(table)[:, :x[0, 0].numel()], x),  # the first ones
    lambda x, table: map_of(tokens_of(x) + F.interpolate(table.flatten(2), x[0, 0].numel(), mode='linear').mT, x),  # in a row
    lambda x, table: x * (table if x.shape[2:] == table.shape[2:] else table[:, :, :1, :1]),
    lambda x, table: x + F.adaptive_avg_pool2d(table, x.shape[2:]),
], ids=['the_first', 'in_a_row', 'as_scales', 'pooled'])
@pytest.mark.parametrize('at', [1, 2])
def test_tables_of_positions_that_no_rule_knows_are_refused(how, at):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match='--method=a2mim'):
        SparseEncoder(Pyramid(Table((32 // 2 ** at,) * 2, how), at), SIZE)


def test_reduced_keys_that_no_cell_holds_want_larger_cells():
    assert SparseEncoder(Pyramid(ReducedKeys(2), 2), SIZE).cell_size == 16
    with pytest.raises(ValueError, match='give a larger cell_size'):
        SparseEncoder(Pyramid(ReducedKeys(2), 2), SIZE, cell_size=8)


class InTraining(nn.Module):
    def forward(self, x):
        return map_of(in_blocks(tokens_of(x), 4), x) if self.training else fused(x)


class RolledInTraining(nn.Module):
    """The operators are those of evaluation mode."""

    def forward(self, x):
        return map_of(attend(tokens_of(x)).roll(int(self.training), 1), x)


class Dropping(nn.Module):
    """Tokens are dropped at random, from the keys."""

    def forward(self, x):
        tokens = tokens_of(x)
        kept = torch.rand(tokens.shape[1]).argsort()[:tokens.shape[1] // 2] if self.training else slice(None)
        return map_of(attend(tokens, tokens[:, kept]), x)


def test_training_mode_is_tried_too():
    for odd in InTraining(), RolledInTraining():
        with pytest.raises(AttentionRefused, match='does not give what it gives|in another order'):
            SparseEncoder(Pyramid(odd), SIZE)
    with pytest.raises(AttentionRefused, match='draws random numbers in training'):
        SparseEncoder(Pyramid(Dropping()), SIZE)


class HalfZero(nn.Module):
    """A weight whose second half, of a branch that mixes tokens, starts at zero."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        nn.init.zeros_(self.linear.weight[WIDTH:])

    def forward(self, x):
        values, rolled = self.linear(attend(tokens_of(x))).chunk(2, 2)
        return map_of(values + rolled.roll(1, 1), x)


class Dirac(nn.Module):
    """A convolution over tokens that starts as the identity."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        nn.init.dirac_(self.conv.weight, groups=WIDTH)

    def forward(self, x):
        return map_of(self.conv(attend(tokens_of(x)).mT).mT, x)


class Gate(nn.Module):
    """A buffer that starts at zero: of a branch that mixes tokens, or of one that does not."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift
        self.register_buffer('gate', torch.zeros(()))

    def forward(self, x):
        tokens = attend(tokens_of(x))
        return map_of(tokens + self.gate * tokens.roll(self.shift, 1), x)


@pytest.mark.parametrize('odd', [HalfZero, Dirac, lambda: Gate(1)], ids=['half_zero', 'dirac', 'gate'])
def test_what_starts_without_effect_is_seen(odd):
    torch.manual_seed(0)
    network = Pyramid(odd())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(AttentionRefused, match='does not give what it gives'):
        SparseEncoder(network, SIZE)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert SparseEncoder(Pyramid(Gate(0)), SIZE).has_attention


class OfOneSize(nn.Module):
    def forward(self, x):
        assert x[0, 0].numel() >= 160, 'few positions'
        return fused(x)


def test_a_network_that_takes_no_part_of_its_images_is_refused():
    with pytest.raises(AttentionRefused, match=r'cannot run in float64 on a part of its images, of 32x32 .*few positions'):
        SparseEncoder(Pyramid(OfOneSize()), SIZE)


class PaddedMean(nn.Module):
    """A weighted mean in windows of 16 x 16, which hold the strip of all cells of an image of 12. It is no product."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, 1))

    def forward(self, x):
        (B, C, H, W), side = x.shape, 16
        padded = F.pad(x, (0, -W % side, 0, -H % side))
        h, w = padded.shape[2] // side, padded.shape[3] // side
        tokens = padded.reshape(B, C, h, side, w, side).permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, C)
        tokens = tokens * F.normalize(tokens @ self.weight, dim=1).abs().sum(1, keepdim=True)
        out = tokens.reshape(B, h, w, side, side, C).permute(0, 5, 1, 3, 2, 4).reshape(B, C, h * side, w * side)
        return out[:, :, :H, :W]


def test_windows_as_large_as_a_smaller_image_are_seen_at_the_real_size():
    """On few cells, or an image of its own size, such attention is over all positions indeed."""
    large = Pyramid(Call(lambda x: windows(x, 12)), 2)
    with pytest.raises(AttentionRefused):
        SparseEncoder(large, (160, 160))
    with pytest.raises(ValueError):
        SparseEncoder(Pyramid(PaddedMean(), 2), (160, 160))


# -- positions --------------------------------------------------------------------------------------------------------

def not_gathered(plane, function, input, size=None, scale_factor=None, *args, **kwargs):
    return function(input, size, scale_factor, *args, **kwargs)


def of_another_plane(plane, function, input, size=None, scale_factor=None, *args, **kwargs):
    """Resized to the visible cells, as if they were the image."""
    table = function(input, size, scale_factor, *args, **kwargs)
    return table.expand(plane.images, -1, -1, -1)


def transposed(plane, function, input, size=None, scale_factor=None, *args, **kwargs):
    return rules.interpolate(plane, function, input.mT, size, scale_factor, *args, **kwargs)


@pytest.mark.parametrize('rule', [not_gathered, of_another_plane, transposed])
def test_a_wrong_rule_for_positions_is_seen(monkeypatch, rule):
    torch.manual_seed(0)
    network = ConvViT(96, (8, 8, 16), (1, 1, 1), 2)
    SparseEncoder(network, (96, 96))
    monkeypatch.setattr(rules, 'TORCH_RULES', ((F.interpolate, rule), *rules.TORCH_RULES))
    with pytest.raises(AttentionRefused, match='does not give what it gives'):
        SparseEncoder(network, (96, 96))


@pytest.mark.parametrize('size', [(32, 32), (64, 64), (48, 80), (32, 16), (112, 48)])
def test_convvit_is_admitted_at_any_size(size):
    torch.manual_seed(0)
    for made_for in (size, 64):
        encoder = SparseEncoder(ConvViT(made_for, (8, 8, 16), (1, 1, 1), 2), size)
        assert encoder.has_attention and encoder.cell_size == 16 and encoder.reductions == (4, 8, 16)


@pytest.mark.slow
def test_spark_builds_convvit_by_its_name():
    spark = build_spark('convvit_small', input_size=96, decoder_width=32)
    assert spark.encoder.has_attention and spark.encoder.grid == spark.encoder.cnn.grid == (6, 6)


def test_spark_trains_convvit():
    torch.manual_seed(0)
    spark = build_spark(ConvViT(96, (8, 8, 16), (1, 1, 2), 2), input_size=96, decoder_width=32)
    visible = torch.tensor([[1, 4, 17, 30]])
    spark(torch.randn(1, 3, 96, 96), visible).backward()
    assert spark.encoder.cnn.pos_embed.grad.abs().sum((0, 2)).nonzero().flatten().tolist() == visible[0].tolist()
    assert set(spark.encoder.unused) == {key for key, p in spark.encoder.cnn.named_parameters() if p.grad is None}


# -- the number of visible cells of a run -----------------------------------------------------------------------------

LAST = 2  # the last map of the Pyramid, with one position a cell
LARGER = (112, 112)  # 14 x 14 cells


def spark_of(encoder, share):
    return SparK(encoder, 1 - share, decoder_width=32)


def convmae_of(encoder, share):
    return ConvMAE(encoder, mask_ratio=1 - share, decoder_width=32, decoder_depth=1, decoder_heads=2)


@pytest.mark.parametrize('method', [spark_of, convmae_of])
def test_the_number_of_visible_cells_is_tried(method):
    encoder = SparseEncoder(Pyramid(Blocks(), LAST), LARGER)
    assert encoder.orders == (49, 78)
    for share in 0.25, 0.4, 65 / 196:
        method(encoder, share)
    assert encoder.orders == (49, 78, 65)
    with pytest.raises(AttentionRefused, match='64 visible cells give something else in another order'):
        method(encoder, 64 / 196)


def test_a_record_says_which_numbers_were_tried(monkeypatch):
    torch.manual_seed(0)
    network, tried, original = Pyramid(Attention(), LAST), [], encoders.prove_order

    def prove_order(*arguments):
        tried.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(encoders, 'prove_order', prove_order)
    record = spark_of(SparseEncoder(network, LARGER), 64 / 196).encoder.record
    again = SparseEncoder(network, LARGER, record=record)
    assert again.orders == (49, 78, 64) and again.record == record
    spark_of(again, 64 / 196)
    assert tried == [64]
    spark_of(again, 66 / 196)
    assert tried == [64, 66]


def test_without_attention_no_number_is_tried(monkeypatch):
    monkeypatch.setattr(encoders, 'prove_order', None)
    assert spark_of(SparseEncoder(Pyramid(nn.Identity()), SIZE), 0.5).encoder.orders is None


# -- networks of timm -------------------------------------------------------------------------------------------------

def test_plain_transformers_are_refused_with_what_suits_them():
    with pytest.raises(AttentionRefused, match='VisionTransformer is a plain transformer.*--method=mae.*--method=a2mim'):
        SparseEncoder(timm.create_model('vit_tiny_patch16_224'), (224, 224))


def test_sizes_of_rectangles_differ_in_shape():
    for grid in ((8, 8), (3, 4), (2, 2), (2, 1), (5, 1)):
        sizes = attention.rectangle_sizes(*grid)
        assert sizes and all(1 <= a <= grid[0] and 1 <= b <= grid[1] and (a, b) != grid for a, b in sizes)
