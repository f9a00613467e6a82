"""Which validation images each fine-tuning of benchmarks.evidence classifies correctly.

    python -m benchmarks.evidence_images FOLDER

With that, the difference of two sides has a standard error over images as well: both sides are measured on the same
images, which the spread over seeds does not show. FOLDER is that of benchmarks.evidence, in which no program runs. The weights
of the fine-tunings must still be there. It takes half a minute for each on two CPU cores; what is known is not done again.
"""
import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from analysis.kept import write_json
from benchmarks.evidence import IN_RESULTS, keep_results
from benchmarks.evidence_records import Records, packed
from benchmarks.evidence_report import PRIMARY
from benchmarks.evidence_runs import environment
from benchmarks.evidence_stages import SCALES, Plan


def main(argv=None):
    parser = argparse.ArgumentParser('benchmarks.evidence_images', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('folder', type=Path, help='the folder of benchmarks.evidence')
    folder = parser.parse_args(argv).folder
    results = folder / 'results.json'
    if not results.exists():
        parser.error(f'there is no {results}: give the folder of a run of benchmarks.evidence')
    try:
        records = Records(folder)
    except ValueError as error:
        parser.error(str(error))
    [(name, content)] = json.loads(results.read_text()).items()
    scale = SCALES[name]
    for stage in Plan(scale, content['seeds'], content['images']).stages():
        weights = folder / f'output_{stage.name}' / f'{scale.model}_1kfinetuned_last.pth'
        if stage.name.startswith(f'{PRIMARY}_') and records.is_done(stage.name) and weights.exists():
            add_images(records, stage.name, weights)
    keep_results(scale, content['seeds'], records, {key: content[name] for key, name in IN_RESULTS.items()})


def add_images(records, name, weights):
    """Add to the record of a fine-tuning which images it classifies correctly, if that is not known.

    Raises SystemExit if the accuracy is not the one of the record.
    """
    record = records.read(name)
    if 'right' in record['figures']:
        return
    right = classified_correctly(records.folder, weights)
    accuracy, before = 100 * right.mean(), record['figures']['top1']
    if abs(accuracy - before) > 0.01:
        sys.exit(f'error: {weights} classifies {accuracy:.2f} % correctly, where {before:.2f} % were measured')
    record['figures']['right'] = packed(right)
    write_json(records.path(name), record)
    print(f'{name}: {accuracy:.2f} % of {len(right):,} images', flush=True)


def classified_correctly(folder, weights):
    """Whether each validation image is classified correctly, bool (N,), in the order of their paths."""
    with tempfile.TemporaryDirectory() as temporary:
        table = Path(temporary, 'predictions.csv')
        words = ('downstream_imagenet.predict', weights.resolve(), 'photos/val', '--top=1', '--no_sheet', '--workers=0',
                 f'--out={table}')
        subprocess.run([sys.executable, '-m', *map(str, words)], cwd=folder, env=environment(), check=True,
                       stdout=subprocess.DEVNULL)
        with table.open(newline='', encoding='utf-8') as file:
            rows = sorted((row['path'], row['class_1']) for row in csv.DictReader(file))
    return np.array([Path(path).parent.name == found for path, found in rows])


if __name__ == '__main__':
    main()
