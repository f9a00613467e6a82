"""What programs that predict share: images one after the other, the options, the network, and the table."""
import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from common.images.files import SeveralFiles
from common.live_line import LiveLine
from common.prediction import PredictionTable, options_of_file, prediction_parser, readable, to_predict_with


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path):
    Image.new('RGB', (3, 2), (1, 2, 3)).save(tmp_path / 'a.png')
    (tmp_path / 'b.png').write_bytes(b'no image')
    Image.new('L', (5, 4), 9).save(tmp_path / 'c.png')
    said = []
    line = LiveLine(said.append)
    with line.counting('seen', 3) as count:
        seen = []
        for number, image in readable(SeveralFiles([tmp_path]), SimpleNamespace(mean=None), line, count):
            assert count.done == number
            seen.append((number, tuple(image.shape), image[:, 0, 0].tolist(), image.dtype))
    assert seen == [(0, (3, 2, 3), [1, 2, 3], torch.uint8), (2, (3, 4, 5), [9, 9, 9], torch.uint8)]
    assert len(said) == 1 and 'b.png cannot be read' in said[0] and 'it is left out' in said[0]


def test_the_options_of_a_program_that_predicts(capsys):
    parser = prediction_parser('some.predict', 'Find things.', 'a file of a run')
    args = parser.parse_args(['--weights=a.pth', 'one.png', 'two'])
    assert (args.images, args.weights, args.out, args.ema) == (['one.png', 'two'], 'a.pth', None, False)
    with pytest.raises(SystemExit):
        parser.parse_args(['one.png'])
    assert '--weights' in capsys.readouterr().err


@dataclass(frozen=True)
class Options:
    """As many options as these tests need."""
    model: str = 'resnet18'
    resume: str = None
    finetune_from: str = None
    eval: str = None


def test_a_file_is_used_without_what_its_run_began_with():
    config = {'model': 'resnet50', 'resume': 'old.pth', 'finetune_from': 'weights.pth', 'option_of_before': 1}
    assert options_of_file({'config': config}, Options, 'run.pth') == Options('resnet50', eval='run.pth')


def test_the_network_or_the_average_of_its_weights():
    models = {'model': nn.Dropout(), 'ema': nn.Dropout()}
    for which, model in models.items():
        assert to_predict_with(models, which, 'run.pth', torch.device('cpu')) is model and not model.training
    with pytest.raises(ValueError, match='run.pth holds no average'):
        to_predict_with({'model': nn.Dropout()}, 'ema', 'run.pth', torch.device('cpu'))


def test_the_table_names_the_image_of_each_row(tmp_path):
    for name in ('a.b.png', 'c.png'):
        Image.new('L', (5, 4)).save(tmp_path / name)
    said = []
    table = PredictionTable(SeveralFiles([tmp_path]), tmp_path / 'out', LiveLine(said.append))
    assert [table.path(number) for number in (0, 1)] == [tmp_path / 'out/0000_a.b', tmp_path / 'out/0001_c']
    table.add(0, [{'score': 0.5}, {'score': 0.25}], 'two objects')
    table.add(1, [], 'nothing')
    rows = table.write('object')
    first = str(tmp_path / 'a.b.png')
    assert rows == [{'file_name': first, 'score': 0.5}, {'file_name': first, 'score': 0.25}]
    assert json.loads((tmp_path / 'out/predictions.json').read_text()) == rows
    assert said[0] == f'{first}: two objects' and said[2].startswith('2 objects in all, in ')
