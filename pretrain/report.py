"""One web page about some pretraining runs, in a single file that needs no network.

    python -m pretrain.report output_my_run                         # output_my_run/report.html
    python -m pretrain.report output_my_run output_other_run        # report.html beside the first of them

Curves beside what is normal, speed, time and energy, reconstructions over the epochs, options and how they
differ, restarts.
"""
from common.start import start_tool

if __name__ == '__main__':
    start_tool()

import argparse
import base64
import html
import io
import json
from pathlib import Path

from common.cli import errors_in_one_sentence, expanded, folder_for, needs, reader_may_leave
from common.reliability.checkpoint import write_atomically
from common.training.log import duration
from common.words import counted
from pretrain.methods import method_of, options_of
from pretrain.results.charts import charts
from pretrain.results.pictures import hidden_cells, read_picture
from pretrain.results.read_log import epoch_of, pictures_of, read_log

MAX_PICTURES = 24  # of a run, so that the page of a long run stays a few MB
MAX_WIDTH = 1200  # pixels of a picture
QUALITY = 80  # of a picture as JPEG, which takes about a third of what PNG takes


def report(folders, out):
    """Write the page about the runs in some folders. Returns its path. Raises ValueError."""
    needs('plotly')
    logs = [read_log(folder) for folder in folders]
    run_names = [log.name for log in logs]
    names = [log.name if run_names.count(log.name) == 1 else str(log.folder) for log in logs]
    methods = [method_of(log.config, log.folder) for log in logs]
    try:
        losses = [method.loss_meaning(log.config) for method, log in zip(methods, logs)]
        all_pictures = [pictures(log, name, number, losses[number].target)
                        for number, (log, name) in enumerate(zip(logs, names))]
        all_starts = [starts(log, name) for log, name in zip(logs, names)]
        page = PAGE.format(title=html.escape(', '.join(names)), summary=summary(logs, names, methods),
                           meaning=meaning(methods, losses), charts=charts(logs, names, losses), pictures=''.join(all_pictures),
                           options=options_table(logs, names, methods), starts=''.join(all_starts))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError('the log of one of these runs is not as this program writes it '
                         f'({type(error).__name__}: {error}): leave that run away') from error
    out = Path(out)
    folder_for(out.parent)
    write_atomically(out, lambda file: file.write(page.encode()))
    return out


def place_of(folders):
    """Return where the page is written if nobody says where: in the run's folder, of several runs beside it."""
    first = Path(folders[0])
    return first / 'report.html' if len(folders) == 1 else first.parent / 'report.html'


def table(rows, head=(), kind=''):
    """Return a table as HTML. The first column is a heading. Texts are escaped here.

    rows: lists of texts. head: texts above the columns. kind: class of the table in CSS.
    """
    body = ''.join(f'<tr>{table_row(row)}</tr>' for row in rows)
    top = ''.join(f'<th>{html.escape(str(text))}</th>' for text in head)
    top = f'<thead><tr>{top}</tr></thead>' if head else ''
    return f'<div class="wide"><table class="{kind}">{top}<tbody>{body}</tbody></table></div>'


def table_row(texts):
    """Return the cells of a row as HTML."""
    first, *others = (html.escape(str(text)) for text in texts)
    return f'<th>{first}</th>' + ''.join(f'<td>{text}</td>' for text in others)


def summary(logs, names, methods):
    """Return the table of what the runs reached, a column for each run, as HTML."""
    about = {
        'method': [method.title for method in methods],
        'network': [log.config['model'] for log in logs],
        'epochs': [f'{log.epochs[-1]["epoch"] if log.epochs else 0} of '
                   f'{log.config["epochs"]}' for log in logs],
        'loss of the last epoch': [last(log, 'loss', '{:.4f}') for log in logs],
        'held-out loss': [last(log, 'val_loss', '{:.4f}') for log in logs],
        'images a second': [last(log, 'images_per_second', '{:.1f}') for log in logs],
        'waiting for images': [last(log, 'data_wait', '{:.0%}') for log in logs],
        'time in epochs': [duration(sum(entry['seconds'] for entry in log.epochs)) for log in logs],
        'energy of the GPUs': [energy(log) for log in logs],
        'unreadable images': [log.epochs[-1]['unreadable'] if log.epochs else 0 for log in logs],
        'starts': [len(log.runs) for log in logs],
        'machine': [f'{log.runs[-1]["ranks"]} x {log.runs[-1].get("machine", "unknown")}' for log in logs]}
    return table([[name, *values] for name, values in about.items()], ['', *names])


def last(log, field, form):
    """Return the last value of an entry of a log as text. form: a format string."""
    values = [entry[field] for entry in log.epochs if entry.get(field) is not None]
    return form.format(values[-1]) if values else 'not measured'


def energy(log):
    """Return the energy of all epochs as text."""
    values = [entry.get('gpu_kwh') for entry in log.epochs]
    return f'{sum(values):.2f} kWh' if values and None not in values else 'not measured'


def meaning(methods, losses):
    """Return what the losses of some runs mean, as HTML: a sentence for each kind of loss that there is."""
    titles = {method.title for method in methods}
    kinds = {(method.title, loss.sentence): loss for method, loss in zip(methods, losses)}
    sentences = [sentence if len(titles) == 1 else f'{title}: {sentence}'
                 for (title, sentence), _ in sorted(kinds.items(), key=lambda kind: kind[1].target)]
    if len(titles) > 1:
        sentences.append('Losses of different methods cannot be compared.')
    elif len(kinds) > 1:
        sentences.append('Losses of different targets cannot be compared.')
    return html.escape(' '.join(sentences), quote=False)


def pictures(log, name, number, target):
    """Return the reconstructions of a run, with a slider over the epochs, as HTML.

    number: of the run. target: what it predicts, see LossMeaning.
    """
    paths = pictures_of(log.folder)
    if len(paths) > MAX_PICTURES:
        paths = [paths[round(i * (len(paths) - 1) / (MAX_PICTURES - 1))] for i in range(MAX_PICTURES)]
    frames = [{'epoch': epoch_of(path), 'picture': embedded(path)} for path in paths]
    if not frames:
        folder = html.escape(str(log.folder / 'reconstructions'))
        return f'<h3>{html.escape(name)}</h3><p>No pictures in {folder}.</p>'
    return SLIDER.format(name=html.escape(name), number=number, last=len(frames) - 1, **frames[-1],
                         hidden=hidden_cells(target), frames=json.dumps(frames))


def embedded(path):
    """Return a picture as a data: address. Raises ValueError if it is none."""
    image = read_picture(path)
    image.thumbnail((MAX_WIDTH, MAX_WIDTH))
    file = io.BytesIO()
    image.convert('RGB').save(file, 'JPEG', quality=QUALITY)
    return 'data:image/jpeg;base64,' + base64.b64encode(file.getvalue()).decode()


def options_table(logs, names, methods):
    """Return what the runs were given, as HTML: first what differs between them, the rest folded away."""
    fields = list(dict.fromkeys(field for log in logs for field in log.config))
    rows = []
    for field in fields:
        values = [log.config.get(field, default_of(field, method)) for log, method in zip(logs, methods)]
        rows.append([field, *('not given' if value is None else value for value in values)])
    differing = [row for row in rows if len({str(value) for value in row[1:]}) > 1]
    same = [row[:2] for row in rows if row not in differing]
    shown = table(differing, ['', *names], 'differing') if differing and len(logs) > 1 else ''
    word = 'Options that all have alike' if len(logs) > 1 else 'All options'
    return f'{shown}<details{"" if shown else " open"}><summary>{word}</summary>{table(same)}</details>'


def default_of(field, method):
    """Return the default of an option that a run was saved without; None if its method has no such option."""
    return getattr(options_of(method.name).options, field, None)


def starts(log, name):
    """Return each start of a run as HTML: when, where, with what. The last one is unfolded."""
    blocks = []
    for number, run in enumerate(log.runs, 1):
        versions = ', '.join(f'{package} {version}' for package, version in run['versions'].items())
        rows = [['machine', f'{counted(run["ranks"], "rank")}, {run.get("machine", "unknown")}'],
                ['precision', run.get('precision', 'unknown')], ['commit', short(run['commit'])],
                ['versions', versions], ['command', ' '.join(run['command'])]]
        word = f'{run["time"]}, from step {run["step"]:,}'
        is_open = ' open' if number == len(log.runs) else ''
        blocks.append(f'<details{is_open}><summary>{html.escape(word)}</summary>{table(rows, kind="long")}</details>')
    return f'<h3>{html.escape(name)}</h3>{"".join(blocks)}'


def short(commit):
    """Return the first digits of a commit, with its '+' for changes that are not committed."""
    return 'no git' if commit is None else commit[:10] + '+' * commit.endswith('+')


SLIDER = '''<h3>{name}</h3>
<p>{hidden}</p>
<label>after epoch <output id="epoch{number}">{epoch}</output>
<input type="range" min="0" max="{last}" value="{last}" id="slider{number}" aria-label="epoch"></label>
<img id="picture{number}" class="sheet" alt="input, masked image and reconstruction of some images"
 src="{picture}">
<script>
(() => {{
  const frames = {frames};
  document.getElementById('slider{number}').addEventListener('input', event => {{
    const frame = frames[event.target.value];
    document.getElementById('picture{number}').src = frame.picture;
    document.getElementById('epoch{number}').textContent = frame.epoch;
  }});
}})();
</script>
'''

PAGE = '''<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 1200px; margin: 0 auto;
        padding: 1rem; }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
h3 {{ font-size: 1rem; }}
table {{ border-collapse: collapse; font-size: .875rem; }}
th, td {{ text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid #e5e7eb;
          vertical-align: top; }}
.differing td {{ background: #fef9c3; }}
.wide {{ overflow-x: auto; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr));
           gap: 1rem; }}
figure {{ margin: 0; min-width: 0; }}
.sheet {{ display: block; max-width: 100%; max-height: 92vh; margin-top: .5rem; }}
th {{ white-space: nowrap; }}
th:first-child {{ position: sticky; left: 0; background: white; }}
.long td {{ overflow-wrap: anywhere; }}
details {{ margin-bottom: .5rem; }}
summary {{ cursor: pointer; }}
@media (max-width: 640px) {{ th {{ white-space: normal; }} }}
input[type=range] {{ width: min(100%, 24rem); vertical-align: middle; }}
</style>
</head>
<body>
<h1>{title}</h1>
{summary}
<h2>Curves</h2>
<p>{meaning} It does not rank networks, methods or mask ratios: compare those on your task.</p>
<div class="charts">{charts}</div>
<h2>Reconstructions</h2>
<p>Input, what the network saw (masked), reconstruction. Pictures without labels, of earlier versions, have
them in rows.</p>
{pictures}
<h2>Options</h2>
{options}
<h2>Starts and environment</h2>
{starts}
<script>
// The first chart was drawn before the others took their places.
window.dispatchEvent(new Event('resize'));
</script>
</body>
</html>
'''


@reader_may_leave()
def main(argv=None):
    parser = argparse.ArgumentParser('pretrain.report', description=__doc__.splitlines()[0],
                                     allow_abbrev=False)
    parser.add_argument('runs', metavar='RUN', nargs='+', help='run folders, such as output_my_run')
    parser.add_argument('--out', help='the page to write (default: report.html in the folder of the run, of '
                                      'several runs beside the first)')
    args = parser.parse_args(expanded(argv))
    with errors_in_one_sentence():
        path = report(args.runs, args.out or place_of(args.runs))
        print(f'{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser')


if __name__ == '__main__':
    main()
