"""Reading back what a pretraining left behind, and what is made of it: reconstructions, features."""
import dataclasses
import shutil
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from common.images.files import SeveralFiles
from common.networks.create import create_cnn
from common.networks.guess import guess_model
from common.networks.origin import origin_of, with_origin
from common.reliability.checkpoint import plain_state
from downstream_imagenet.tuned import read_tuned
from pretrain import features, reconstruct
from pretrain.masking import patchify, unpatchify
from pretrain.results import pictures
from pretrain.results.typed_masks import on_other_grid, read_mask, to_visible
from pretrain.saved import read_saved
from pretrain.spark import build_spark
from pretrain.spark_weights import official_encoder
from tests.terminal import as_stdout


def official_file(spark, path):
    """A whole SparK under the official names, as published."""
    state = {f'sparse_encoder.sp_cnn.{k}': v for k, v in official_encoder(plain_state(spark.encoder.cnn)).items()}
    rest = {k: v for k, v in plain_state(spark).items() if not k.startswith('encoder.')}
    torch.save({'module': {**state, **rest, 'imn_m': torch.zeros(1, 3, 1, 1)}, 'config': {}}, path)


@pytest.mark.parametrize('what', ['', 'your_convnet_still_pretraining.pth'])
def test_a_run_is_read_with_its_options(finished, what):
    saved = read_saved(finished / what)
    content = torch.load(finished / 'your_convnet_still_pretraining.pth', weights_only=True)
    assert all(torch.equal(saved.network.state_dict()[key], value) for key, value in content['model'].items())
    assert (saved.model, saved.name, saved.step, saved.images) == ('your_convnet', 'tiny', 10, 40)
    assert saved.has_decoder and not saved.network.training and saved.folder == finished
    assert saved.network.encoder.input_size == (32, 32) and saved.network.dense_decoder.widths[0] == 16


def test_an_encoder_in_a_run_folder_or_alone(finished, tmp_path):
    saved = read_saved(finished / 'your_convnet_1kpretrained.pth')
    own = read_saved(finished).network.encoder.cnn.state_dict()
    assert saved.options.input_size == 32 and not saved.has_decoder  # known from the log beside it
    assert all(torch.equal(saved.network.encoder.cnn.state_dict()[key], value) for key, value in own.items())
    with pytest.raises(ValueError, match='without its decoder'):
        saved.require_decoder()
    shutil.copy(finished / 'your_convnet_1kpretrained.pth', tmp_path)
    assert read_saved(tmp_path / 'your_convnet_1kpretrained.pth', input_size=64).options.input_size == 64
    save_file(own, tmp_path / 'any.safetensors')
    with pytest.raises(ValueError, match='give --model'):
        read_saved(tmp_path / 'any.safetensors')
    again = read_saved(tmp_path / 'any.safetensors', model='your_convnet', input_size=32)
    assert all(torch.equal(again.network.encoder.cnn.state_dict()[key], value) for key, value in own.items())


def test_a_fine_tuned_network_tells_what_it_is(tmp_path):
    config = {'finetune_from': 'w.pth', 'model': 'test_resnet', 'in_chans': 1, 'input_size': 96, 'mean': None, 'std': None}
    network = timm.create_model('test_resnet', num_classes=4, in_chans=1)
    run = {'version': 1, 'step': 3, 'optimizer': {}, 'config': config, 'classes': ['a', 'b', 'c', 'd']}
    for content in ({'config': config, 'model': network.state_dict()}, {**run, 'model': network.state_dict()}):
        torch.save(content, tmp_path / 'x.pth')
        saved = read_saved(tmp_path / 'x.pth')
        assert (saved.model, saved.options.size, saved.options.in_chans) == ('test_resnet', (96, 96), 1)
        assert saved.has_classifier and saved.head == ('fc.weight', 'fc.bias') and not saved.is_encoder
        assert torch.equal(saved.network.encoder.cnn.fc.weight, network.fc.weight)
    assert saved.classes == ('a', 'b', 'c', 'd')
    with pytest.raises(ValueError, match='--adapt_input_conv'):
        read_saved(tmp_path / 'x.pth', in_chans=3)
    adapted = read_saved(tmp_path / 'x.pth', in_chans=3, adapt_input_conv=True)
    assert adapted.network.encoder.in_chans == 3 and len(adapted.loaded.adapted) == 1


def test_random_numbers_of_the_caller_are_left_alone(finished):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    read_saved(finished / 'your_convnet_1kpretrained.pth')
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize('model', ['resnet26', 'convnext_tiny'])
def test_an_official_file_says_itself_what_it_is(tmp_path, model):
    spark = build_spark(model, 64, decoder_width=64).eval()
    official_file(spark, tmp_path / 'x_withdecoder_1kpretrained_spark_style.pth')
    saved = read_saved(tmp_path / 'x_withdecoder_1kpretrained_spark_style.pth', input_size=64)
    images, visible = torch.randn(1, 3, 64, 64), torch.tensor([[0, 3]])
    assert saved.model == model and saved.has_decoder
    with torch.no_grad():
        assert torch.equal(saved.network.predict(images, visible), spark.predict(images, visible))


@pytest.mark.parametrize('model, name', [('resnet18', 'resnet18'), ('resnet50', 'resnet50'), ('resnet200', 'resnet200'),
                                         ('convnext_base', 'convnext_base'), ('efficientnet_b0', None), ('vgg11', None)])
def test_guessing_a_network(model, name):
    state = {key: torch.empty(shape, device='meta') for key, shape in shapes(model).items()}
    assert guess_model(state) == name and guess_model({'module': torch.zeros(1)}) is None
    if name:
        assert guess_model({f'sparse_encoder.sp_cnn.{key}': value for key, value in official_encoder(state).items()}) == name


def shapes(model):
    return {key: value.shape for key, value in timm.create_model(model).state_dict().items()}


def test_what_is_no_run(finished, tmp_path):
    with pytest.raises(ValueError, match='is no folder of one run: it holds no'):
        read_saved(tmp_path)
    with pytest.raises(ValueError, match='there is no file'):
        read_saved(tmp_path / 'absent.pth')
    (tmp_path / 'text.pth').write_text('not weights')
    with pytest.raises(ValueError, match=r'refused|damaged'):
        read_saved(tmp_path / 'text.pth')
    other = {'version': 1, 'step': 3, 'config': {'model': 'resnet18', 'lr': 1}, 'model': {}, 'optimizer': {}}
    torch.save(other, tmp_path / 'c.pth')
    with pytest.raises(ValueError, match='says nothing of a mask'):  # a fine-tuned run, or another program's
        read_saved(tmp_path / 'c.pth')
    with pytest.raises(ValueError, match='input_size is 32 there, not 64.*leave that away'):
        read_saved(finished, input_size=64)
    for name in ('a', 'b'):
        shutil.copy(finished / 'your_convnet_still_pretraining.pth', tmp_path / f'{name}_still_pretraining.pth')
    with pytest.raises(ValueError, match='it holds several networks: give one of its files, such as'):
        read_saved(tmp_path)


def test_no_ratio_is_not_a_ratio_of_nothing(finished):
    with pytest.raises(ValueError, match='mask_ratio must lie between 0 and 1, not 0'):
        read_saved(finished, mask_ratio=0)
    assert read_saved(finished, mask_ratio=0.25).network.visible_cells == 12


def test_a_renamed_file_says_that_its_classifier_was_not_trained(finished, tmp_path):
    other = shutil.copy(finished / 'your_convnet_1kpretrained.pth', tmp_path / 'your_convnet.pth')
    saved = read_saved(other, input_size=64)  # its name says which network it is
    assert saved.is_encoder and not saved.has_classifier and saved.method.name == 'spark'
    with pytest.raises(ValueError, match='without a trained classifier'):
        read_tuned(other)
    state = torch.load(other, weights_only=True)
    create_cnn('your_convnet').load_state_dict(state)
    torch.save(with_origin(state, 'a2mim'), other)
    assert read_saved(other, input_size=64).method.name == 'a2mim'
    torch.save(dict(state), other)  # as a file of anyone
    assert read_saved(other, input_size=64).has_classifier


@pytest.mark.parametrize('noted', [None, 'text', {'': None}, {'': {'pretraining': 3}}, {'': {}}])
def test_a_note_of_another_kind_is_none(noted):
    content = OrderedDict()
    content._metadata = noted
    assert origin_of(content) is None and origin_of({}) is None


def test_a_log_is_believed_of_its_own_files_only(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / 'run')
    other = shutil.copy(folder / 'your_convnet_1kpretrained.pth', folder / 'another.pth')
    assert read_saved(other, model='your_convnet', input_size=64).folder is None
    assert read_saved(folder / 'your_convnet_1kpretrained.pth').folder == folder
    for broken in ('', 'no json', '{"run": "x", "config": {"model": "your_convnet"}}\n'):
        (folder / 'pretrain_log.txt').write_text(broken)
        assert read_saved(folder).folder is None  # the run itself needs no log


def test_images_are_prepared_as_they_are_read_in_training(finished, photos):
    saved = read_saved(finished)
    deep = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(deep).save(photos / 'e.png')
    path = photos / 'f.tif'
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(path)
    said = []
    read = {Path(name).name: image for _, name, image in saved.each([photos], said.append)}
    assert list(read) == ['a.png', 'b.png', 'c.jpg', 'e.png'] and len(said) == 2
    assert 'f.tif' in said[1] and 'NaN' in said[1]
    for name in ('c.jpg', 'e.png'):
        assert torch.equal(saved.prepare(Image.open(photos / name)), read[name])
    by_bilinear = dataclasses.replace(saved, options=dataclasses.replace(saved.options, interpolation='bilinear'))
    assert not torch.equal(by_bilinear.prepare(Image.open(photos / 'c.jpg')), read['c.jpg'])
    assert len(read['e.png'][0, 0].unique()) > 500


def test_features_of_an_image_with_a_long_name(finished, tmp_path):
    (tmp_path / 'photos').mkdir()
    Image.new('RGB', (64, 64)).save(tmp_path / 'photos' / f'{"n" * 250}.png')
    features.features(read_saved(finished), [tmp_path / 'photos'], tmp_path / 'out', say=lambda _: None)
    assert len(list((tmp_path / 'out').glob('0000_nnn*.npz'))) == 1


def test_five_channels_are_not_called_unreadable(photos, tmp_path):
    torch.save(timm.create_model('test_resnet', in_chans=5).state_dict(), tmp_path / 'five.pth')
    given = {'model': 'test_resnet', 'in_chans': 5, 'mean': (0.5,) * 5, 'std': (0.5,) * 5, 'input_size': 64}
    saved = read_saved(tmp_path / 'five.pth', **given)
    with pytest.raises(ValueError, match='1 or 3 channels, not 5'):
        features.features(saved, [photos], tmp_path / 'out')
    assert saved.prepare(torch.rand(5, 70, 70)).shape == (1, 5, 64, 64)


def test_masks_of_a_person():
    assert read_mask('#..#\n.##.\n', (2, 4)).tolist() == [[0, 3, 5, 6]]
    assert read_mask('6, 0 5\n3', (2, 4)).tolist() == [[0, 3, 5, 6]]
    for text, message in (('#.\n.#', '2 lines of 4'), ('#..#\n.##', '2 lines of 4'), ('0 8', 'cell 8'), ('-1', 'cell -1'),
                          ('0 1 x', 'neither'), ('', 'neither'), ('####\n####', 'one cell at least'),
                          ('....\n....', 'one cell at least'), ('#..#\n.#x.', 'the sign "x"')):
        with pytest.raises(ValueError, match=message):
            read_mask(text, (2, 4))
    with pytest.raises(ValueError, match='3 cells'):
        to_visible([True, False, True], (2, 4))


def test_a_mask_on_another_grid():
    mask = read_mask('#...\n..#.\n', (2, 4))
    assert on_other_grid(mask, (2, 4), (2, 4)) is mask
    assert on_other_grid(mask, (2, 4), (4, 8)).tolist() == read_mask(
        '##......\n##......\n....##..\n....##..', (4, 8)).tolist()
    for seed in range(50):  # a coarser grid has both kinds too, and a finer one shows what the coarse one does
        order = torch.rand(64, generator=torch.Generator().manual_seed(seed)).argsort()
        for count in (1, 6, 26, 63):
            fine = order[:count].sort().values[None]
            coarse = on_other_grid(fine, (8, 8), (2, 2))
            assert 0 < coarse.shape[1] < 4
            assert torch.equal(on_other_grid(on_other_grid(coarse, (2, 2), (8, 8)), (8, 8), (2, 2)), coarse)
        assert 0 < on_other_grid(fine, (8, 8), (3, 5)).shape[1] < 15


@pytest.fixture(scope='module')
def seen(finished):
    """A network, images, masks, and its views of them."""
    saved = read_saved(finished)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) / 3
    visible = saved.network.draw_visible(2, torch.Generator().manual_seed(1))
    return saved, images, visible, pictures.views(saved.network, images, visible, saved.options.normalisation)


def test_what_is_visible_stays_and_what_is_hidden_is_predicted(seen):
    saved, images, visible, view = seen
    cells = partial(patchify, cell_size=saved.network.encoder.cell_size)
    is_visible = saved.network.is_visible(visible)[..., 0]
    for picture in (view.masked, view.reconstruction, view.own):
        same = (cells(picture) == cells(view.image)).all(2)
        assert same[is_visible].all() and not same[~is_visible].any()
    grey = torch.tensor(saved.options.normalisation[0]).view(1, 3, 1, 1).expand_as(images)
    assert torch.allclose(cells(view.masked)[~is_visible], cells(grey)[~is_visible])
    assert not cells(view.error)[is_visible].any()


def test_the_paper_s_picture_borrows_statistics_and_the_other_does_not(seen):
    saved, images, visible, view = seen
    spark, changed = saved.network, images.clone()
    hidden = next(cell for cell in range(spark.cells) if cell not in visible[0].tolist())
    grid, cell_size = spark.encoder.grid, spark.encoder.cell_size
    cells = patchify(changed, cell_size)
    cells[0, hidden] = cells[0, hidden] * 0.5 + 0.7  # another mean and deviation where nothing is seen
    other = pictures.views(spark, unpatchify(cells, grid, cell_size), visible, saved.options.normalisation)
    assert torch.equal(other.own, view.own)
    assert not torch.equal(other.reconstruction, view.reconstruction)


def test_the_loss_of_a_picture_is_that_of_the_method(seen):
    saved, images, visible, view = seen
    with torch.no_grad():
        assert torch.allclose(view.loss.mean(), saved.network(images, visible), rtol=1e-5)


def test_the_picture_of_a_run_has_a_row_for_each_image(seen, finished):
    saved, images, visible, view = seen
    picture = pictures.in_columns(view)
    side = 224  # of an image of 32 px, enlarged
    assert picture.shape[0] == 3 and picture.shape[2] > 3 * side and picture.shape[1] > side * len(images) / 2
    original = view.image[0].repeat_interleave(7, 1).repeat_interleave(7, 2)
    windows = picture.unfold(1, side, 1)[:, :60, :, :].transpose(2, 3)[..., 8:8 + side]  # of the first column
    assert ((windows - original[:, None]).abs().amax((0, 2, 3)) < 0.01).any()
    with Image.open(finished / 'reconstructions' / 'epoch_0002.png') as written:
        assert written.width > 6 * side and 1 < written.width / written.height < 2  # eight images, in two groups


def test_features_as_colours():
    level = torch.randn(2, 5, 6, 4)
    level[:, :, 2] = 0  # hidden
    picture = pictures.feature_pictures(level)
    assert picture.shape == (2, 3, 6, 4) and (picture[:, :, 2] == 1).all() and (picture[:, :, :2] < 1).any()
    assert torch.allclose(pictures.feature_pictures(level * 3), picture, atol=1e-5)
    assert pictures.feature_pictures(torch.zeros(1, 2, 3, 3)).eq(1).all()


@pytest.fixture
def photos(tmp_path):
    """A folder with a colour image, a grey one, one that is turned by its EXIF, and one that is none."""
    folder = tmp_path / 'photos'
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(folder / 'a.png')
    Image.fromarray(noise[..., 0]).save(folder / 'b.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(folder / 'c.jpg', exif=exif)
    (folder / 'd.png').write_bytes(b'no image')
    return folder


def test_reconstruct_command(finished, photos, tmp_path, capsys):
    reconstruct.main([str(finished), str(photos), str(photos / 'a.png'), f'--out={tmp_path / "out"}', '--seed=3', '--grid'])
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert len(names) == 4 * 3 + 1 and '0004_a_masked.png' in names and 'contact_sheet.png' in names
    said = capsys.readouterr().out
    assert 'd.png' in said and 'left out' in said and '4 images' in said and '10 hidden cells of 16' in said
    assert Image.open(tmp_path / 'out' / '0000_a_reconstruction.png').size == (32, 32)


def test_pictures_and_features_lie_beside_the_run(finished, photos, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(finished, tmp_path / 'output_tiny')
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    reconstruct.main(['output_tiny', str(photos)])
    features.main(['output_tiny/your_convnet_1kpretrained.pth', str(photos), '--no_maps'])
    said = capsys.readouterr().out
    assert (folder / 'reconstructed/contact_sheet.png').exists() and (folder / 'features/pooled.npz').exists()
    assert 'output_tiny/reconstructed' in said and 'output_tiny/features' in said
    assert set(tmp_path.iterdir()) == before


def test_bars_while_images_are_read(finished, photos, tmp_path):
    with as_stdout() as terminal:
        reconstruct.reconstruct(read_saved(finished), [photos], tmp_path / 'out')
        features.features(read_saved(finished), [photos], tmp_path / 'features')
    assert any('reconstructed ' in text and ' 2/' in text for text in terminal.drawn)
    assert any(text.startswith('features ') for text in terminal.drawn)
    assert 'elapsed' not in '\n'.join(terminal.lines)


def test_a_given_mask_and_ratio(finished, photos, tmp_path):
    (tmp_path / 'mask.txt').write_text('#...\n.#..\n..#.\n...#\n')
    out = tmp_path / 'out'
    reconstruct.main([str(finished), str(photos / 'a.png'), f'--out={out}', f'--visible={tmp_path / "mask.txt"}'])
    masked = np.asarray(Image.open(out / '0000_a_masked.png')).reshape(4, 8, 4, 8, 3)
    flat = masked.std((1, 3)).max(-1) == 0
    assert (~flat).tolist() == np.eye(4, dtype=bool).tolist()
    with pytest.raises(SystemExit):
        reconstruct.main([str(finished), str(photos), f'--visible={tmp_path / "mask.txt"}', '--mask_ratio=0.5'])
    losses = reconstruct.reconstruct(read_saved(finished, mask_ratio=0.9), [photos / 'a.png'], out, say=lambda _: None)
    assert [name for name, _ in losses] == [str(photos / 'a.png')]
    masked = np.asarray(Image.open(out / '0000_a_masked.png')).reshape(4, 8, 4, 8, 3)
    assert (masked.std((1, 3)).max(-1) == 0).sum() == 14


@pytest.mark.parametrize('arguments, message', [
    (['absent', 'x.png'], 'there is no file'), (['RUN', 'absent.png'], 'there is no image'),
    (['RUN', 'PHOTOS/d.png'], 'none of'),
    (['RUN', 'PHOTOS', '--visible=absent.txt'], 'absent.txt'), (['RUN', 'PHOTOS', '--mask_ratio=1.5'], 'mask_ratio'),
    (['RUN/your_convnet_1kpretrained.pth', 'PHOTOS'], 'without its decoder')])
def test_what_cannot_be_reconstructed(finished, photos, tmp_path, arguments, message):
    given = [one.replace('RUN', str(finished)).replace('PHOTOS', str(photos)) for one in arguments]
    with pytest.raises(SystemExit) as stop:
        reconstruct.main([*given, f'--out={tmp_path / "out"}'])
    assert str(stop.value).startswith('error: ') and message in str(stop.value)


def test_features_command(finished, photos, tmp_path, capsys):
    features.main([str(finished / 'your_convnet_1kpretrained.pth'), str(photos), f'--out={tmp_path / "out"}'])
    assert 'd.png' in capsys.readouterr().out
    pooled, one = np.load(tmp_path / 'out/pooled.npz'), np.load(tmp_path / 'out/0001_b.npz')
    assert pooled['pooled'].shape == (3, 128) and pooled['names'].tolist()[1].endswith('b.png')
    assert {key: one[key].shape for key in one} == {'pooled': (128,), 'stride_2': (32, 16, 16), 'stride_4': (64, 8, 8),
                                                   'stride_8': (128, 4, 4)}
    saved = read_saved(finished)
    image = saved.prepare(Image.open(photos / 'b.png'))
    with torch.no_grad():
        levels = saved.network.encoder.cnn.forward_intermediates(image, intermediates_only=True)
    assert np.allclose(one['stride_8'], levels[-1][0].numpy(), atol=1e-5)
    assert np.allclose(pooled['pooled'][1], levels[-1][0].mean((1, 2)).numpy(), atol=1e-5)


def test_a_photograph_is_turned_as_it_is_to_be_seen(photos):
    images = SeveralFiles([photos])
    assert [images[i].size for i in range(3)] == [(60, 40), (60, 40), (40, 60)]


