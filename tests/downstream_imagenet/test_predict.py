"""Classifying images with a fine-tuned run: equal to its evaluation; tables, pictures, refusals."""
import csv
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from common.demo_world import write_world
from common.networks.create import create_cnn
from common.reliability.checkpoint import save
from common.words import file_stem, printable
from downstream_imagenet import predict as module
from downstream_imagenet.config import Options
from downstream_imagenet.main import fine_tune
from downstream_imagenet.predict import main, predict
from downstream_imagenet.sheet import SIDE, sheet_of
from downstream_imagenet.tuned import read_tuned
from tests.terminal import as_stdout


@pytest.fixture(scope='module')
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp('labelled')
    write_world(folder, 48, 26, 40, seed=5)
    return folder


def options(folder, data, **changes):
    return Options(**{'name': 'small', 'run_dir': str(folder), 'data_path': str(data),
                      'model': 'your_convnet', 'input_size': 32, 'batch_size': 12, 'epochs': 2, 'workers': 0,
                      'warmup_epochs': 0.5, 'lr': 1e-2, 'log_every': 3, 'ema': 0.5, **changes})


OTHER = {'crop': 0.7, 'mean': (0.4, 0.5, 0.6)}  # than the defaults


@pytest.fixture(scope='module')
def run(labelled, tmp_path_factory):
    return fine_tune(options(tmp_path_factory.mktemp('tuned') / 'run', labelled, **OTHER))


def content(folder, which='best'):
    return torch.load(folder / f'your_convnet_1kfinetuned_{which}.pth', weights_only=True)


def quiet(*words):
    pass


def accuracy(found):
    return 100 * np.mean([one.path.split('/')[-2] == one.classes[0][0] for one in found])


def test_the_images_stand_above_a_bar(run, labelled):
    with as_stdout() as terminal:
        found = predict(read_tuned(run), [labelled / 'val'], workers=0, batch_size=13)
        fine_tune(options(run, labelled, **OTHER, eval=str(run / 'your_convnet_1kfinetuned_best.pth')))
    named = [line for line in terminal.lines if line.startswith(str(labelled))]
    assert [line.split(': ')[0] for line in named] == [one.path for one in found]
    shown = [text for text in terminal.drawn if '█' in text or '░' in text]
    assert 'classified ' in shown[0] and '0/26' in shown[0] and 'validation images ' in shown[-1]
    assert any('13/26' in text for text in shown) and 'images/s' not in ''.join(terminal.lines)


# -- the same as the evaluation ------------------------------------------------------------------------------

@pytest.mark.parametrize('which', ['best', 'best_ema', 'last'])
def test_it_finds_what_the_evaluation_counted(run, labelled, which):
    file = run / f'your_convnet_1kfinetuned_{which}.pth'
    found = predict(read_tuned(file), [labelled / 'val'], workers=0, say=quiet, batch_size=5)
    evaluated = fine_tune(options(run, labelled, **OTHER, eval=str(file)))['model']
    assert len(found) == evaluated['images'] == 26
    assert accuracy(found) == pytest.approx(evaluated['top1'], abs=1e-9)
    within = np.mean([one.path.split('/')[-2] in dict(one.classes) for one in found])
    assert 100 * within == pytest.approx(evaluated['top5'], abs=1e-9)
    assert which == 'last' or evaluated['top1'] == pytest.approx(content(run, which)['top1'])


def test_each_image_has_the_outputs_of_the_evaluation(run, labelled, monkeypatch):
    """Image by image, with the logits that the evaluation itself sees."""
    from downstream_imagenet import evaluation
    seen, counts = [], evaluation.counts
    monkeypatch.setattr(evaluation, 'counts', lambda logits, true: seen.append(logits) or counts(logits, true))
    file = run / 'your_convnet_1kfinetuned_best.pth'
    fine_tune(options(run, labelled, **OTHER, eval=str(file)))
    expected, names = torch.cat(seen).softmax(1), content(run)['classes']
    found = predict(read_tuned(file), [labelled / 'val'], top=12, workers=0, say=quiet, batch_size=12)
    got = torch.tensor([[dict(one.classes)[name] for name in names] for one in found])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert all(sum(share for _, share in one.classes) == pytest.approx(1) for one in found)
    assert all(one.classes == sorted(one.classes, key=lambda pair: -pair[1]) for one in found)


def test_of_a_folder_the_better_of_weights_and_average(run, tmp_path):
    for best, ema, chosen in ((40.0, 50.0, 'best_ema'), (60.0, 50.0, 'best'), (50.0, 50.0, 'best')):
        folder = tmp_path / f'{best}'
        folder.mkdir()
        for which, top1 in (('best', best), ('best_ema', ema)):
            save(folder / f'your_convnet_1kfinetuned_{which}.pth', {**content(run, which), 'top1': top1})
        assert read_tuned(folder).path.name == f'your_convnet_1kfinetuned_{chosen}.pth'
        assert read_tuned(folder, ema=True).path.name == 'your_convnet_1kfinetuned_best_ema.pth'


def test_the_average_in_the_last_state(run):
    file = run / 'your_convnet_1kfinetuned_last.pth'
    plain, averaged = (read_tuned(file, ema=ema).model.cnn.state_dict() for ema in (False, True))
    kept = content(run, 'last')
    key = 'stages.0.conv1.weight'
    assert torch.equal(plain[key], kept['model'][key]) and torch.equal(averaged[key], kept['ema'][key])
    assert not torch.equal(plain[key], averaged[key])
    with pytest.raises(ValueError, match='no average'):
        read_tuned(run / 'your_convnet_1kfinetuned_best.pth', ema=True)


def test_an_image_is_not_turned_as_the_evaluation_does_not(run, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 255, (40, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'plain.png')
    tag = Image.Exif()
    tag[0x112] = 6
    Image.fromarray(pixels).save(tmp_path / 'tagged.png', exif=tag)
    images = [tmp_path / 'plain.png', tmp_path / 'tagged.png']
    plain, tagged = predict(read_tuned(run), images, workers=0, say=quiet)
    assert plain.classes == tagged.classes


def test_a_linear_probe(labelled, tmp_path):
    folder = fine_tune(options(tmp_path / 'probe', labelled, freeze=True, opt='lars', ema=0.0, epochs=1,
                               warmup_epochs=0.0))
    found = predict(read_tuned(folder), [labelled / 'val'], workers=0, say=quiet)
    assert accuracy(found) == pytest.approx(content(folder)['top1'])
    save(tmp_path / 'w.pth', content(folder)['model'])
    alone = read_tuned(tmp_path / 'w.pth', model='your_convnet', input_size=32)
    assert alone.options.freeze and alone.classes == [str(i) for i in range(12)]
    names = content(folder)['classes']
    numbered = predict(alone, [labelled / 'val'], workers=0, say=quiet, top=1)
    assert [names[int(one.classes[0][0])] for one in numbered] == [one.classes[0][0] for one in found]


# -- names of the classes ------------------------------------------------------------------------------------

def test_where_names_are_from(run, labelled, tmp_path):
    names = sorted(folder.name for folder in (labelled / 'train').iterdir())
    assert read_tuned(run).classes == names and len(names) == 12
    nameless = {key: value for key, value in content(run).items() if key != 'classes'}
    save(tmp_path / 'old.pth', nameless)
    assert read_tuned(tmp_path / 'old.pth').classes == names  # of the folders of its images
    moved = {**nameless['config'], 'data_path': str(tmp_path / 'gone')}
    save(tmp_path / 'moved.pth', {**nameless, 'config': moved})
    tuned = read_tuned(tmp_path / 'moved.pth')
    assert tuned.classes == [str(i) for i in range(12)] and 'numbered' in tuned.named_by
    given = [f'größe {i}' for i in range(12)]
    (tmp_path / 'names.txt').write_text('\ufeff' + '\n'.join(given) + '\n\n', encoding='utf-8')
    assert read_tuned(run, classes=tmp_path / 'names.txt').classes == given
    for text, number in (('a\nb\n', 2), ('\n'.join('abcdefghijklm'), 13)):
        (tmp_path / 'few.txt').write_text(text)
        with pytest.raises(ValueError, match=f'has {number} names, the network .* tells 12 classes apart'):
            read_tuned(run, classes=tmp_path / 'few.txt')
    (tmp_path / 'binary').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='--classes=.* cannot be read'):
        read_tuned(run, classes=tmp_path / 'binary')


@pytest.mark.parametrize('name', ['resnet18', 'resnetv2_18', 'convnext_atto', 'your_convnet', 'densenet121',
                                  'mobilenetv3_small_050'])
def test_weights_alone_say_how_many_classes_they_tell_apart(name, tmp_path):
    import pretrain.models  # noqa: F401  (registers your_convnet)
    save(tmp_path / 'w.pth', {'state_dict': create_cnn(name, num_classes=7).state_dict()})
    tuned = read_tuned(tmp_path / 'w.pth', model=name, input_size=64)
    assert len(tuned.classes) == 7
    assert tuned.model.logits(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


# -- what is refused -----------------------------------------------------------------------------------------

def test_a_file_without_a_trained_classifier(run, finished, tmp_path):
    encoder = finished / 'your_convnet_1kpretrained.pth'
    for source in (finished, encoder, finished / 'your_convnet_still_pretraining.pth'):
        with pytest.raises(ValueError, match='pretrain.*classifier.*fine-tune it first'):
            read_tuned(source, model='your_convnet' if source == encoder else None)
    headless = {key: value for key, value in content(run)['model'].items() if not key.startswith('head.')}
    save(tmp_path / 'headless.pth', headless)
    with pytest.raises(ValueError, match='holds no classifier for your_convnet'):
        read_tuned(tmp_path / 'headless.pth', model='your_convnet', input_size=32)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='is no run folder of downstream_imagenet'):
        read_tuned(tmp_path / 'empty')
    with pytest.raises(ValueError, match='there is no file'):
        read_tuned(tmp_path / 'gone')


def test_what_does_not_fit_a_file(run, tmp_path):
    with pytest.raises(ValueError, match='input_size is 32 there, not 64'):
        read_tuned(run, input_size=64)
    with pytest.raises(ValueError, match='model is your_convnet there, not resnet18'):
        read_tuned(run, model='resnet18')
    save(tmp_path / 'w.pth', content(run)['model'])
    with pytest.raises(ValueError, match='give --model'):
        read_tuned(tmp_path / 'w.pth')
    config = content(run)['config']
    for changes, message in (({'classes': ['a', 'b']}, 'names 2 classes, its network tells 12'),
                             ({'classes': [1, 2]}, 'no file of fine-tuning'),
                             ({'config': {'x': 1}}, 'no file of fine-tuning'),
                             ({'config': {**config, 'input_size': 10 ** 6}}, '1000000 px large'),
                             ({'config': {**config, 'model': 'gone'}}, 'no network is called "gone"')):
        save(tmp_path / 'damaged.pth', {**content(run), **changes})
        with pytest.raises(ValueError, match=message):
            read_tuned(tmp_path / 'damaged.pth')
    shutil.copy(run / 'your_convnet_1kfinetuned_best.pth', tmp_path)
    shutil.copy(run / 'your_convnet_1kfinetuned_best.pth', tmp_path / 'resnet18_1kfinetuned_best.pth')
    with pytest.raises(ValueError, match='holds several networks'):
        read_tuned(tmp_path)


@pytest.mark.parametrize(('words', 'message'), [
    (['a.png', '--top=0'], '--top is 1 or more'), (['none.png'], 'there is no image or folder none.png'),
    (['nothing'], 'nothing holds no images'), (['a.png', '--sheet=a.png'], 'is one of the images'),
    (['.', '--sheet=a.png'], 'is one of the images'), (['a.png', '--out=nothing'], 'is a folder'),
    (['a.png', '--sheet=s.jpg'], 'ends with .png'), (['a.png', '--out=s.png'], 'cannot both be'),
    (['bad.png'], 'none of the images can be read'), (['a.png', '--bs=0'], 'batch_size must be 1 or more'),
    (['a.png', '--out=a.png/b.csv'], 'cannot make the folder'),
    (['list', '--list_root=gone'], 'there is no folder gone'),
    (['lost'], 'which is no file')])
def test_a_command_line_that_is_wrong(run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (9, 9)).save('a.png')
    (tmp_path / 'nothing').mkdir()
    (tmp_path / 'bad.png').write_bytes(b'no image')
    (tmp_path / 'list').write_text('a.png\n')
    (tmp_path / 'lost').write_text('b.png\n')
    before = (tmp_path / 'a.png').read_bytes()
    with pytest.raises(SystemExit, match=message) as stop:
        main([str(run), '--workers=0', *words])
    assert stop.value.code.startswith('error: ') and '\n' not in stop.value.code
    assert (tmp_path / 'a.png').read_bytes() == before and not list(tmp_path.glob('*.csv'))


# -- images, tables, pictures --------------------------------------------------------------------------------

def test_from_the_command_line(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)
    (tmp_path / 'photos/deep').mkdir(parents=True)
    for name in ('photos/b.png', 'photos/deep/a.jpg', 'photos/deep/a, "b".png', 'other/ä.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(name)
    (tmp_path / 'photos/cut.jpg').write_bytes((tmp_path / 'photos/deep/a.jpg').read_bytes()[:500])
    Image.fromarray(pixels).save(tmp_path / 'other/no_ending', 'PNG')
    (tmp_path / 'other/names').write_text('no_ending\ngone.png\nä.png\n', encoding='utf-8')
    main([str(run), 'other/names', 'photos', '--top=3', '--out=found/t.csv', '--workers=0'])
    said = capsys.readouterr().out
    with open(tmp_path / 'found/t.csv', encoding='utf-8', newline='') as file:
        head, *rows = csv.reader(file)
    assert ','.join(head) == 'path,class_1,probability_1,class_2,probability_2,class_3,probability_3'
    assert [row[0] for row in rows] == ['other/no_ending', 'other/ä.png', 'photos/b.png',
                                        'photos/deep/a, "b".png', 'photos/deep/a.jpg']
    assert rows[0][1] in content(run)['classes']
    assert float(rows[0][2]) >= float(rows[0][4]) >= float(rows[0][6]) > 0
    assert rows[0][1:] == rows[2][1:] and f'other/ä.png: {rows[1][1]} {float(rows[1][2]):.3f}, ' in said
    assert 'unreadable image photos/cut.jpg' in said and 'unreadable image other/gone.png' in said
    assert '2 of 7 images cannot be read and are left out' in said and 'found/t.png' in said
    with Image.open(tmp_path / 'found/t.png') as sheet:
        assert sheet.width > 3 * SIDE and sheet.height > 2 * SIDE
    assert sorted(path.name for path in (tmp_path / 'found').iterdir()) == ['t.csv', 't.png']

    main([str(run), 'photos/b.png', '--top=99', '--no_sheet', '--workers=0'])
    said = capsys.readouterr().out
    assert 'there are 12 classes' in said and len(said.splitlines()[-1].split(', ')) == 12
    assert not (tmp_path / 'predictions.png').exists()
    folder = shutil.copytree(run, tmp_path / 'output_copy')
    main(['output_copy', 'photos/b.png', '--workers=0'])
    assert (folder / 'predictions.png').exists() and not (tmp_path / 'predictions.png').exists()
    assert 'pictures: output_copy/predictions.png' in capsys.readouterr().out


def test_loading_processes_change_nothing(run, labelled):
    tuned = read_tuned(run)
    alone, beside = (predict(tuned, [labelled / 'val'], workers=workers, say=quiet, batch_size=7)
                     for workers in (0, 2))
    assert alone == beside


def test_grey_16_bits_and_an_image_of_one_pixel(labelled, tmp_path):
    folder = fine_tune(options(tmp_path / 'grey', labelled, in_chans=1, epochs=1, warmup_epochs=0.0))
    values = np.random.default_rng(0).integers(0, 65535, (40, 60), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / 'sixteen.png')
    Image.new('CMYK', (1, 1), (200, 0, 0, 0)).save(tmp_path / 'one.jpg')
    Image.new('RGB', (1, 3000), 'red').save(tmp_path / 'line.png')
    found = predict(read_tuned(folder), [tmp_path], workers=0, say=quiet, sheet=tmp_path / 'sheet.png')
    names = ('line.png', 'one.jpg', 'sixteen.png')
    assert [one.path for one in found] == [str(tmp_path / name) for name in names]


def test_a_sheet_is_limited_and_says_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'MAX_ON_SHEET', 4)
    for i in range(6):
        Image.new('RGB', (8, 8), (40 * i, 0, 0)).save(tmp_path / f'{i}.png')
    said = []
    predict(read_tuned(run), [tmp_path], workers=0, say=said.append, sheet=tmp_path / 'sheet.png')
    assert any('the first 4 of 6 images' in line for line in said)
    with Image.open(tmp_path / 'sheet.png') as sheet:
        assert sheet.width < 3 * SIDE and sheet.height < 3 * SIDE + 40


def test_a_tile_keeps_the_proportions_of_its_image():
    sheet = np.asarray(sheet_of([(Image.new('RGB', (400, 100), 'blue'), 'a', 'b')])).astype(int)
    blue = (np.abs(sheet - (0, 0, 255)).sum(2) < 9).nonzero()
    assert np.ptp(blue[1]) + 1 == SIDE and np.ptp(blue[0]) + 1 == SIDE // 4
    upright = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 30, 10)
    sheet = np.asarray(sheet_of([(upright, 'a', 'b'), (None, 'c', 'd')]))
    red = (np.abs(sheet - np.array((255, 0, 0))).sum(2) < 9).nonzero()
    assert np.ptp(red[0]) + 1 == SIDE and np.ptp(red[1]) + 1 == round(SIDE / 3)


def test_texts_fit_and_print():
    sheet = sheet_of([(None, 'a long name of a picture ' * 50 + 'end.png', 'x' * 9000)])
    assert SIDE <= sheet.width < SIDE + 30
    assert printable('a\nb\udcff ü') == 'a\\nb\\udcff ü'
    assert file_stem('a/b\udcff.tar.gz') == 'b\udcff.tar' and len(os.fsencode(file_stem('語' * 80 + '.png'))) == 150


def test_no_module_that_a_file_names_is_imported(run, tmp_path, monkeypatch):
    (tmp_path / 'named_by_a_run.py').write_text('from pathlib import Path\n'
                                                'Path(__file__).with_name("marker").touch()\n')
    monkeypatch.syspath_prepend(tmp_path)
    config = {**content(run)['config'], 'register': 'named_by_a_run'}
    save(tmp_path / 'w.pth', {**content(run), 'config': config})
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    words = [str(tmp_path / 'w.pth'), str(tmp_path / 'a.png'), '--no_sheet', '--workers=0']
    main(words)
    assert not (tmp_path / 'marker').exists()
    main([*words, '--register=named_by_a_run'])
    assert (tmp_path / 'marker').exists()  # the user's own word


def test_what_of_the_images_is_not_looked_at_is_said(run, labelled, tmp_path, capsys):
    """Pages after the first, and files that are no images; by the evaluation too."""
    for split in ('train', 'val'):
        for name in content(run)['classes']:
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            page = Image.new('RGB', (40, 40), 'red')
            page.save(folder / 'pages.tif', save_all=True, append_images=[page, page])
            (folder / 'about.txt').write_text('no image')
    said = []
    file = run / 'your_convnet_1kfinetuned_best.pth'
    predict(read_tuned(file), [tmp_path / 'val'], workers=0, say=said.append)
    assert any('12 other files (.txt' in line for line in said)
    assert any('the first of 3 pages is read' in line for line in said)
    fine_tune(options(run, tmp_path, **OTHER, eval=str(file)))
    told = capsys.readouterr()
    assert '12 other files (.txt' in told.out and 'the first of 3 pages is read' in told.err
