"""git ignores what our commands write, and nothing that belongs to the project."""
import subprocess

import pytest

from tests.conftest import ROOT

WRITTEN = (
    'output_my_run/pretrain_log.txt', 'output_my_run/export/resnet50_hf/README.md', 'output_my_run/report.html',
    'demo_output/demo.png', 'demo_output/world/train/0/0.png', 'demo_coco/train2017/0.png', 'demo_found/0000_0.png',
    'evidence_output/log.txt', 'export/resnet50_hf/config.json', 'resnet50_timm.safetensors', 'resnet50_onnx.onnx',
    'resnet50_detectron2.pkl', 'resnet50_1kpretrained.pth', 'features/pooled.npz', 'reconstructed/contact_sheet.png',
    'report.html', 'predictions.csv', 'predictions.png', 'predictions/predictions.json')


def git(*arguments):
    done = subprocess.run(['git', *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip('this copy of the project is no clone')
    return done.stdout.splitlines()


def test_what_commands_write_is_ignored():
    assert git('check-ignore', '--no-index', *WRITTEN) == list(WRITTEN)


def test_no_file_of_the_project_is_ignored():
    assert git('ls-files', '--cached', '--ignored', '--exclude-standard') == []
