"""One web page about some pretraining runs, in a single file that needs no network.

    python -m pretrain.report output_my_run output_other_run --out=report.html

Curves beside what is normal, speed, time and energy, reconstructions over the epochs, options and how they differ, restarts.
"""
import argparse
import base64
import html
import io
import json
from pathlib import Path

from common.cli import errors_in_one_sentence, expanded, needs, reader_may_leave
from common.reliability.checkpoint import write_atomically
from common.training.log import duration
from common.words import counted
from pretrain.results.pictures import hidden_cells, read_picture
from pretrain.results.read_log import pictures_of, read_log
from pretrain.spark_method import SparKOptions as Options

COLOURS = ('#2563eb', '#dc2626', '#16a34a', '#9333ea', '#d97706', '#0891b2', '#be185d', '#4d7c0f')
PICTURES = 24  # of a run at most, so that a page of a long run stays a few MB
WIDTH = 1400  # pixels of a picture at most
CHARTS = (('loss', 'Loss on hidden cells (dotted: held-out)', False), ('lr', 'Learning rate', False),
          ('gradient_norm', 'Gradient norm', True), ('images_per_second', 'Images a second', False))


LOSSES = {  # by what a run predicts
    'normalised': 'The loss is a squared error on normalised cells: near 1 at the start, about 0.6 after the first epochs, '
                  '0.2 to 0.4 at the end of long runs.',
    'pixels': 'The loss of a run with --target=pixels is a squared error on pixels, normalised with --mean and --std: '
              'predicting the mean everywhere gives 1 if --mean and --std are those of the images.'}


def report(folders, out):
    """Write the page about the runs in some folders; returns its path. Raises ValueError."""
    needs('plotly')
    logs, out = [read_log(folder) for folder in folders], Path(out)
    names = [log.name if [other.name for other in logs].count(log.name) == 1 else str(log.folder) for log in logs]
    try:
        page = PAGE.format(title=html.escape(', '.join(names)), summary=summary(logs, names), charts=charts(logs, names),
                           meaning=meaning(logs),
                           pictures=''.join(pictures(log, name, i) for i, (log, name) in enumerate(zip(logs, names))),
                           starts=''.join(starts(log, name) for log, name in zip(logs, names)),
                           options=options_table(logs, names))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f'the log of one of these runs is not as this program writes it ({type(error).__name__}: {error}): '
                         'leave that run away') from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: file.write(page.encode()))
    return out


def table(rows, head=(), kind=''):
    """rows of texts -> HTML; the first column is a heading. Texts are escaped here."""
    cells = [''.join(f'<{"td" if i else "th"}>{html.escape(str(text))}</{"td" if i else "th"}>' for i, text in enumerate(row))
             for row in rows]
    top = f'<thead><tr>{"".join(f"<th>{html.escape(str(text))}</th>" for text in head)}</tr></thead>' if head else ''
    return f'<div class="wide"><table class="{kind}">{top}<tbody>' + ''.join(f'<tr>{row}</tr>' for row in cells) + \
        '</tbody></table></div>'


def summary(logs, names):
    def last(log, name, form='{:.4f}'):
        values = [entry[name] for entry in log.epochs if entry.get(name) is not None]
        return form.format(values[-1]) if values else 'not measured'

    def energy(log):
        values = [entry.get('gpu_kwh') for entry in log.epochs]
        return f'{sum(values):.2f} kWh' if values and None not in values else 'not measured'

    about = {
        'network': [log.config['model'] for log in logs],
        'epochs': [f'{log.epochs[-1]["epoch"] if log.epochs else 0} of {log.config["epochs"]}' for log in logs],
        'loss of the last epoch': [last(log, 'loss') for log in logs],
        'held-out loss': [last(log, 'val_loss') for log in logs],
        'images a second': [last(log, 'images_per_second', '{:.1f}') for log in logs],
        'waiting for images': [last(log, 'data_wait', '{:.0%}') for log in logs],
        'time in epochs': [duration(sum(entry['seconds'] for entry in log.epochs)) for log in logs],
        'energy of the GPUs': [energy(log) for log in logs],
        'unreadable images': [log.epochs[-1]['unreadable'] if log.epochs else 0 for log in logs],
        'starts': [len(log.runs) for log in logs],
        'machine': [f'{log.runs[-1]["ranks"]} x {log.runs[-1].get("machine", "unknown")}' for log in logs]}
    return table([[name, *values] for name, values in about.items()], ['', *names])


def charts(logs, names):
    """The curves, one figure each; the first brings plotly's script along."""
    names = [html.escape(name, quote=False) for name in names]  # plotly makes links of the tags in a text
    figures = [chart(logs, names, *about).to_html(full_html=False, include_plotlyjs=i == 0, config=CONFIG)
               for i, about in enumerate(CHARTS)]
    return ''.join(f'<figure>{figure}</figure>' for figure in figures)


def meaning(logs):
    """What the losses of some runs mean, as HTML: a sentence for each target that there is."""
    targets = [target for target in LOSSES if any(log.target == target for log in logs)]
    apart = ' Losses of different targets cannot be compared.' if len(targets) > 1 else ''
    return ' '.join(LOSSES[target] for target in targets) + apart


CONFIG = {'responsive': True, 'displaylogo': False, 'displayModeBar': False}


def chart(logs, names, field, title, logarithmic):
    from plotly import graph_objects
    figure = graph_objects.Figure()
    for number, (log, name) in enumerate(zip(logs, names)):
        colour = COLOURS[number % len(COLOURS)]
        for of, dash, label in ((field, 'solid', name), ('val_loss', 'dot', f'{name}, held-out')):
            entries = [log.before, *log.epochs] if of == 'val_loss' and log.before else log.epochs
            points = [(entry['epoch'], entry[of]) for entry in entries if entry.get(of) is not None]
            if points and (of == field or field == 'loss'):
                x, y = zip(*points)
                figure.add_scatter(x=x, y=y, name=label, mode='lines+markers' if len(x) < 30 else 'lines',
                                   line={'color': colour, 'dash': dash}, showlegend=of == field and len(logs) > 1)
    longest = max((log.config['epochs'] for log in logs), default=1)
    if field == 'loss' and all(log.target == 'normalised' for log in logs):
        figure.add_hrect(0.2, 0.4, fillcolor='#16a34a', opacity=0.12, line_width=0, annotation_position='bottom left',
                         annotation_text='normal at the end of long runs')
        for level, text in ((1.0, 'a decoder that says nothing'), (0.6, 'normal after the first epochs')):
            figure.add_hline(level, line={'color': '#6b7280', 'dash': 'dash', 'width': 1}, annotation_text=text,
                             annotation_position='bottom right')
    if field == 'loss':
        for log in logs:
            for run in log.runs[1:]:
                per_epoch = log.epochs[0]['step'] / log.epochs[0]['epoch'] if log.epochs else 0
                if per_epoch:
                    figure.add_vline(run['step'] / per_epoch, line={'color': '#9ca3af', 'dash': 'dot', 'width': 1},
                                     annotation_text='restart', annotation_font_size=9)
        figure.update_yaxes(rangemode='tozero')
    figure.update_layout(title=title, template='plotly_white', height=340, margin={'l': 55, 'r': 15, 't': 45, 'b': 70},
                         legend={'orientation': 'h', 'y': -0.2}, xaxis={'title': 'epoch', 'range': [0, longest]},
                         font={'family': 'system-ui, sans-serif'})
    if logarithmic:
        figure.update_yaxes(type='log')
    return figure


def pictures(log, name, number):
    """The reconstructions of a run, with a slider over the epochs."""
    paths = pictures_of(log.folder)
    if len(paths) > PICTURES:
        paths = [paths[round(i * (len(paths) - 1) / (PICTURES - 1))] for i in range(PICTURES)]
    frames = [(int(path.stem.split('_')[1]), embedded(path)) for path in paths]
    if not frames:
        return f'<h3>{html.escape(name)}</h3><p>No pictures in {html.escape(str(log.folder / "reconstructions"))}.</p>'
    epoch, picture = frames[-1]
    return SLIDER.format(name=html.escape(name), number=number, last=len(frames) - 1, epoch=epoch, picture=picture,
                         hidden=hidden_cells(log.target),
                         frames=json.dumps([{'epoch': epoch, 'picture': picture} for epoch, picture in frames]))


def embedded(path):
    """A picture as a data: address. Raises ValueError if it is none."""
    image, file = read_picture(path), io.BytesIO()
    image.thumbnail((WIDTH, WIDTH))
    image.save(file, 'PNG', optimize=True)
    return 'data:image/png;base64,' + base64.b64encode(file.getvalue()).decode()


def options_table(logs, names):
    """What the runs were given: first what differs between them, the rest folded away."""
    fields = list(dict.fromkeys(field for log in logs for field in log.config))
    default = {field: getattr(Options, field, None) for field in fields}  # of options younger than a run
    rows = [[field, *(log.config.get(field, default[field]) for log in logs)] for field in fields]
    rows = [[row[0], *('not given' if value is None else value for value in row[1:])] for row in rows]
    differing = [row for row in rows if len({str(value) for value in row[1:]}) > 1]
    same = [row[:2] for row in rows if row not in differing]
    shown = (table(differing, ['', *names], 'differing') if differing else '') if len(logs) > 1 else ''
    word = 'Options that all have alike' if len(logs) > 1 else 'All options'
    return f'{shown}<details{" open" if not shown else ""}><summary>{word}</summary>{table(same)}</details>'


def starts(log, name):
    """Each start of a run: when, where, with what."""
    rows = [[run['time'], f'step {run["step"]:,}', counted(run['ranks'], 'rank'), run.get('machine', ''),
             run.get('precision', ''), short(run['commit']),
             ', '.join(f'{what} {version}' for what, version in run['versions'].items()),
             ' '.join(run['command'])] for run in log.runs]
    return f'<h3>{html.escape(name)}</h3>' + table(rows, ['time', 'from', 'ranks', 'machine', 'precision', 'commit', 'versions',
                                                          'command'])


def short(commit):
    return 'no git' if commit is None else commit[:10] + '+' * commit.endswith('+')


SLIDER = '''<h3>{name}</h3>
<p>{hidden}</p>
<label>after epoch <output id="epoch{number}">{epoch}</output>
<input type="range" min="0" max="{last}" value="{last}" id="slider{number}" aria-label="epoch"></label>
<div class="wide">
<img id="picture{number}" class="pixels" alt="rows: input, what the network saw, reconstruction" src="{picture}">
</div>
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
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1f2937; max-width: 1200px; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }} h3 {{ font-size: 1rem; }}
table {{ border-collapse: collapse; font-size: .875rem; }}
th, td {{ text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid #e5e7eb; vertical-align: top; }}
.differing td {{ background: #fef9c3; }}
.wide {{ overflow-x: auto; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 1rem; }}
figure {{ margin: 0; min-width: 0; }}
.pixels {{ display: block; width: 100%; min-width: 640px; margin-top: .5rem; image-rendering: pixelated; }}
th {{ white-space: nowrap; }}
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
<p>Rows: input, what the network saw, reconstruction.</p>
{pictures}
<h2>Options</h2>
{options}
<h2>Starts and environment</h2>
{starts}
<script>window.dispatchEvent(new Event('resize'));  // the first chart was drawn before the others took their places</script>
</body>
</html>
'''


@reader_may_leave()
def main(argv=None):
    parser = argparse.ArgumentParser('pretrain.report', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('runs', metavar='RUN', nargs='+', help='run folders, such as output_my_run')
    parser.add_argument('--out', default='report.html', help='the page to write (default: report.html)')
    args = parser.parse_args(expanded(argv))
    with errors_in_one_sentence():
        path = report(args.runs, args.out)
        print(f'{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser')


if __name__ == '__main__':
    main()
