"""Detection runs: they resume, are evaluated and predict, and refuse what does not fit."""
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

import tests.small_vit  # noqa: F401
from common.demo_coco import write_coco
from common.distributed import Ranks
from common.networks.create import create_cnn
from common.networks.openmmlab import to_openmmlab
from downstream_coco.checkpoints import build_detector as build
from downstream_coco.checkpoints import read_detector, restore
from downstream_coco.config import Options, parse_options
from downstream_coco.data import CocoImages
from downstream_coco.main import check, train_detector
from downstream_coco.main import main as coco_main
from downstream_coco.predict import main as predict_main
from downstream_coco.predict import predict
from downstream_coco.recipe import Recipe
from downstream_coco.training import DetectorTraining
from tests.conftest import ROOT, Stop, same, stop_after
from tests.downstream_coco.files import files
from tests.downstream_coco.runs import SMALL, log_of, saved
from tests.terminal import as_stdout


@pytest.mark.parametrize('changes', [{'ema': 0.9, 'save_every_steps': 1, 'crop_scale': (0.5, 1), 'scales': (0.5, 1)},
                                     {'batch_size': 1, 'save_every_steps': 4, 'scales': (0.5, 1), 'frozen_bn': True},
                                     {'heads': 'box', 'accum': 2, 'opt': 'lamb', 'layer_decay': 1.0}])
def test_a_run_resumes_to_the_last_bit(small, tmp_path, monkeypatch, changes):
    whole = train_detector(small(run_dir=str(tmp_path / 'whole'), **changes))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 4)
        train_detector(small(**changes))
    assert saved(tmp_path / 'run')['step'] == (4 if 'save_every_steps' in changes else 3)  # 12 images, three steps of four
    train_detector(small(**changes))
    one, other = saved(tmp_path / 'run'), saved(whole)
    for key in ('model', 'ema', 'optimizer', 'step', 'sums', 'best'):
        assert same(one[key], other[key]), key
    epochs = [[{key: line[key] for key in ('epoch', 'loss', 'box_AP')} for line in log_of(folder) if 'epoch' in line]
              for folder in (tmp_path / 'run', whole)]
    assert epochs[0] == epochs[1] and len(epochs[0]) == 2
    assert ('mask_AP' in one['best']['model']) == ('heads' not in changes) and ('ema' in one['best']) == ('ema' in changes)


def test_images_are_held_out_of_one_annotation_file(small, scenes, tmp_path, monkeypatch, capsys):
    shutil.copytree(scenes, tmp_path / 'one')
    with pytest.raises(ValueError, match='--val_fraction holds out .* there are validation images already, .*val2017'):
        train_detector(small(val_fraction=0.3))
    shutil.rmtree(tmp_path / 'one/val2017')
    (tmp_path / 'one/annotations/instances_val2017.json').unlink()
    runs = []
    original = DetectorTraining.describe
    monkeypatch.setattr(DetectorTraining, 'describe', lambda run: runs.append(run) or original(run))
    options = small(data_path=str(tmp_path / 'one'), val_fraction=0.3, epochs=1)
    folder = train_detector(options)
    whole = CocoImages(*options.files('train'), keep_empty=True)
    training, part = runs[0].images, runs[0].val_images
    assert len(whole) == 13 and len(part) == 4 and not set(training.ids) & set(part.ids)
    empty = {whole.ids[i] for i in range(13) if not whole.objects(i)['labels']}
    assert {*training.ids, *part.ids} == set(whole.ids) - (empty - set(part.ids)) and len(empty) == 1
    for images in (training, part):
        for i in range(len(images)):
            at = whole.ids.index(images.ids[i])
            assert images.objects(i) == whole.objects(at) and images.name(i) == whole.name(at)
            assert images.shapes[i].tolist() == whole.shapes[at].tolist()
    assert ' 4 for validation (held out of the same, --val_fraction=0.3)' in capsys.readouterr().out
    flags = [f'--eval={folder / "your_convnet_coco_last.pth"}', f'--data_path={tmp_path / "one"}', '--workers=0']
    found = train_detector(check([*flags, '--val_fraction=0.3']))
    assert 'was trained' not in capsys.readouterr().err
    train_detector(check([*flags, '--val_fraction=0.4']))
    assert 'was trained with --val_fraction=0.3 --seed=0' in capsys.readouterr().err
    assert found['model']['images'] == 4 and found['model']['box_AP'] == log_of(folder)[-1]['box_AP']


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_epochs_to_the_last_bit(small, tmp_path, monkeypatch):
    changes = {'ema': 0.9, 'epochs': 1}
    for name in ('one', 'other'):
        train_detector(small(run_dir=str(tmp_path / name), **changes))
    changes |= {'epochs': 3, 'save_every_steps': 2}
    train_detector(small(run_dir=str(tmp_path / 'one'), **changes))
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 3)
        train_detector(small(run_dir=str(tmp_path / 'other'), **changes))
    train_detector(small(run_dir=str(tmp_path / 'other'), **changes))
    one, other = saved(tmp_path / 'one'), saved(tmp_path / 'other')
    for key in ('model', 'ema', 'optimizer', 'step', 'sums', 'best', 'ended_at'):
        assert same(one[key], other[key]), key
    assert (one['step'], one['ended_at']) == (9, (3,))


def test_eval_and_predict_read_what_a_run_wrote(small, tmp_path):
    folder = train_detector(small(ema=0.5))
    said = (folder / 'stdout_backup.txt').read_text()
    for text in ('left out    1 crowd regions', 'unused      head\n', 'stride 4 (64 channels), 8 (128 channels)'):
        assert text in said, text
    last = log_of(folder)[-1]
    path = str(folder / 'your_convnet_coco_last.pth')
    found = train_detector(Options(eval=path, data_path=small().data_path, workers=0))  # sizes and all are the file's
    for name in ('box_AP', 'mask_AP', 'objects_found', 'images'):
        assert found['model'][name] == last[name] and found['ema'][name] == last[f'{name}_ema'], name
    for given, sizes in (({}, (64, 64, 100)), ({'input_size': 800, 'long_side': 1333, 'detections': 7}, (800, 1333, 7))):
        options = restore(read_detector(path), Options(eval=path, **given))[0]  # what is given, also the default of a run
        assert (options.input_size, options.long_side, options.detections) == sizes
    assert last['objects_found'] > 0
    Image.new('L', (50, 90)).save(tmp_path / 'grey.png')
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new('RGB', (30, 20)).save(tmp_path / 'turned.jpg', exif=exif)
    (tmp_path / 'broken.png').write_bytes(b'no image')
    val = tmp_path / 'grey.png', tmp_path / 'broken.png', tmp_path / 'turned.jpg'
    with as_stdout() as terminal:
        train_detector(Options(eval=path, data_path=small().data_path, workers=0))
        results = predict(path, val, tmp_path / 'out', score=0.0, say=print)
    shown = {' '.join(text.split()[:2]) for text in terminal.drawn}
    assert {'validation images', 'checking instances_val2017.json', 'detected 0:00'} <= shown
    lines = '\n'.join(terminal.lines)
    assert 'elapsed' not in lines and 'model: box AP ' in lines and 'broken.png cannot be read' in lines
    assert (tmp_path / 'out' / '0000_grey.png').exists() and not list((tmp_path / 'out').glob('*broken*'))
    assert Image.open(tmp_path / 'out' / '0002_turned.png').size == (533, 800)  # upright, and enlarged
    assert json.loads((tmp_path / 'out' / 'predictions.json').read_text()) == results
    content = saved(folder)
    content['model']['roi_heads.box_predictor.cls_score.bias'][0] += 8  # nothing is likely now
    torch.save(content, tmp_path / 'unsure.pth')
    assert len(predict(tmp_path / 'unsure.pth', val[:1], tmp_path / 'out', score=1e-6)) == 100
    assert len(predict(tmp_path / 'unsure.pth', val[:1], tmp_path / 'out', score=1e-6, overlap=0)) == 100
    assert not predict(tmp_path / 'unsure.pth', val[:1], tmp_path / 'out', score=0.05)
    with as_stdout() as terminal:
        predict_main([f'--weights={path}', str(tmp_path / 'grey.png')])
    assert json.loads((folder / 'predictions/predictions.json').read_text()) == []
    assert f'0 objects in all, in {folder}/predictions/predictions.json' in ''.join(terminal.lines)  # a long line is broken
    with pytest.raises(ValueError, match='--model=resnet18: the network of .* is your_convnet. Leave --model out'):
        train_detector(Options(eval=path, model='resnet18', data_path=small().data_path, workers=0))
    with pytest.raises(ValueError, match='no average'):
        predict(str(folder / 'your_convnet_coco_best.pth'), val, tmp_path / 'out', which='ema')
    with pytest.raises(ValueError, match='no image or folder'):
        predict(path, [tmp_path / 'none'], tmp_path / 'out')
    with pytest.raises(ValueError, match='--overlap lies between 0 and 1'):
        predict(path, val, tmp_path / 'out', overlap=1.5)


def test_weights_of_the_cnn_are_loaded_strictly(small, tmp_path):
    cnn = create_cnn('your_convnet', num_classes=7)
    torch.save(cnn.state_dict(), tmp_path / 'w.pth')
    detector, loaded = build(small(finetune_from=str(tmp_path / 'w.pth')), 12, True)
    assert loaded.left_out == ('head.weight', 'head.bias')
    assert torch.equal(detector.backbone.cnn.stages[1].conv1.weight, cnn.stages[1].conv1.weight)
    torch.save({'model': detector.state_dict()}, tmp_path / 'detector.pth')
    again, _ = build(small(finetune_from=str(tmp_path / 'detector.pth')), 3, False)
    assert all(torch.equal(a, b) for a, b in zip(again.backbone.cnn.parameters(), detector.backbone.cnn.parameters()))
    with pytest.raises(ValueError, match='do not fit ResNet'):
        build(small(finetune_from=str(tmp_path / 'w.pth'), model='resnet18'), 12, True)
    with pytest.raises(SystemExit, match='holds no detector'):
        coco_main(['--eval', str(tmp_path / 'w.pth'), '--data_path', small().data_path])


def test_an_official_a2mim_starts_a_detector_and_a_vit_has_no_pyramid(small, tmp_path):
    cnn = create_cnn('test_convnext')
    keys = {f'backbone.{key}': value for key, value in to_openmmlab(cnn.state_dict()).items() if not key.startswith('head.')}
    token = {'backbone.mask_token': torch.zeros(1, 64, 1, 1), 'neck.decoder_pred.0.bias': torch.zeros(3072)}
    torch.save({'state_dict': {**keys, **token}}, tmp_path / 'w.pth')
    detector, loaded = build(small(finetune_from=str(tmp_path / 'w.pth'), model='test_convnext'), 12, True)
    own = detector.backbone.cnn.state_dict()
    assert len(loaded.matched) == len(keys)
    assert all(torch.equal(own[key], value) for key, value in cnn.state_dict().items() if key in loaded.matched)
    with pytest.raises(ValueError, match='Beit cannot take an image of 256 px and give its maps'):
        build(small(finetune_from=str(tmp_path / 'w.pth'), model='small_vit'), 12, True)


def test_unreadable_validation_images_are_left_out(scenes, small, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / 'scenes')
    broken = sorted((tmp_path / 'scenes' / 'val2017').iterdir())
    for path in broken[:-1]:
        path.write_bytes(b'no image')
    folder = train_detector(small(data_path=str(tmp_path / 'scenes'), epochs=1))
    assert log_of(folder)[-1]['images'] == 1 and capsys.readouterr().err.count('it is left out') == 4
    broken[-1].write_bytes(b'no image')
    with pytest.raises(ValueError, match='none of the validation images can be read'):
        train_detector(small(eval=str(folder / 'your_convnet_coco_last.pth'), data_path=str(tmp_path / 'scenes')))


def test_few_images_at_a_time_are_warned_of(small, capsys):
    train_detector(small(epochs=1, batch_size=4, accum=4, freeze=False, graph=True))
    err = capsys.readouterr().err
    assert 'see 1 images at a time' in err and '--graph is not used: the batches differ in their shapes' in err
    train_detector(small(epochs=1, freeze=True, fresh=True))
    err = capsys.readouterr().err
    assert 'stays as random as it is' in err and 'at a time' not in err


@pytest.mark.slow
def test_two_processes_look_at_each_image_once(scenes, tmp_path):
    flags = [f'--{name}={value}' for name, value in {**SMALL, 'epochs': 1}.items()]
    environment = {**os.environ, 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1'}
    command = ['bash', str(ROOT / 'downstream_coco/main.sh'), 'two', '--ngpu_per_node=2', f'--data_path={scenes}', *flags]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'output_two'
    last = log_of(folder)[-1]
    assert last['images'] == 5
    alone = train_detector(Options(eval=str(folder / 'your_convnet_coco_last.pth'), data_path=str(scenes), **SMALL))['model']
    assert alone['box_AP'] == pytest.approx(last['box_AP']) and alone['objects_found'] == last['objects_found']


@pytest.mark.parametrize(('line', 'words'), [
    ('--long_side=700', 'long_side 700 must be input_size 800 or more'),
    ('--scales=1,0.5', 'scales is from,to'),
    ('--freeze --frozen_bn', 'leave --frozen_bn out'),
    ('--dataset=hfds/x', '--dataset is for classes'),
    ('--heads=both', 'invalid choice'),
    ('--input_size=3,4', 'invalid int value'),
])
def test_wrong_options_are_refused(line, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_options(['--name=n', *line.split()])
    assert stop.value.code == 2 and words in capsys.readouterr().err


def test_missing_paths_and_other_runs_are_named(small, tmp_path, capsys):
    with pytest.raises(SystemExit, match='say where the images are'):
        coco_main(['--name=n', '--run_dir', str(tmp_path / 'n')])
    with pytest.raises(SystemExit, match='no annotation file'):
        coco_main(['--name=n', '--run_dir', str(tmp_path / 'n'), '--data_path', str(tmp_path)])
    train_detector(small(epochs=1))
    with pytest.raises(ValueError, match='rois was 16 and is 8 now'):
        train_detector(small(epochs=1, rois=8))


def test_groups_hold_every_trained_parameter_once(small, monkeypatch):
    held = {}

    def announce(self):
        held.update(groups=self.optimizer.param_groups, model=self.network, view=self.train_dataset.view)
        raise Stop
    monkeypatch.setattr(DetectorTraining, 'announce', announce)
    with pytest.raises(Stop):
        train_detector(small(layer_decay=0.5, weight_decay=0.25, crop_scale=(0.3, 0.9), flip=False))
    assert (held['view'].crop_scale, held['view'].flip) == ((0.3, 0.9), False)
    found = [id(one) for group in held['groups'] for one in group['params']]
    assert sorted(found) == sorted(id(one) for one in held['model'].parameters() if one.requires_grad)
    scale = {id(one): group.get('lr_scale', 1.0) for group in held['groups'] for one in group['params']}
    cnn = held['model'].backbone.cnn
    assert [scale[id(cnn.stages[i].conv1.weight)] for i in (1, 2)] == [0.25, 0.5]
    assert scale[id(held['model'].rpn.head.cls_logits.weight)] == 1
    decay = {id(one): group['weight_decay'] for group in held['groups'] for one in group['params']}
    for name, one in held['model'].named_parameters():
        assert not one.requires_grad or decay[id(one)] == (0.25 if one.ndim > 1 else 0), name


@pytest.mark.slow
def test_a_compiled_network_trains(small):
    plain = log_of(train_detector(small(epochs=1)))[-1]
    compiled = log_of(train_detector(small(epochs=1, compile=True, fresh=True)))[-1]
    assert compiled['loss'] == pytest.approx(plain['loss'], rel=1e-3)


@pytest.mark.slow
def test_a_small_network_learns_the_drawn_images(tmp_path):
    write_coco(tmp_path, 8, 1, 128, seed=0)
    folder = train_detector(Options(
        name='n', run_dir=str(tmp_path / 'run'), data_path=str(tmp_path), val_images=str(files(tmp_path)[0]),
        val_annotations=str(files(tmp_path)[1]), model='convnext_atto', input_size=128, long_side=128, scales=(1.0, 1.0),
        fpn_channels=64, head_channels=128, mask_layers=1, rois=32, batch_size=4, epochs=100, lr=2e-3, layer_decay=1.0,
        weight_decay=0.01, clip_grad=10.0, flip=False, workers=0, val_every=100))
    last = log_of(folder)[-1]
    assert last['box_AP'] > 50 and last['mask_AP'] > 50


@pytest.mark.parametrize(('images', 'device', 'expected'), [
    (118_287, 'cuda', ('paper', 16, 36, 2e-4)), (16_383, 'cuda', ('auto', 16, 10, 2e-4)),
    (128, 'cuda', ('auto', 8, 300, 1.4e-4)), (128, 'cpu', ('auto', 2, 31, 7.1e-5)), (118_287, 'cpu', ('auto', 2, 1, 7.1e-5))])
def test_what_is_chosen_for_a_number_of_images(images, device, expected):
    options, _ = Recipe().settled(Options(name='run'), images, Ranks(0, 1, torch.device(device)))
    assert (options.recipe, options.batch_size, options.epochs) == expected[:3]
    assert options.peak_lr == pytest.approx(expected[3])
