"""The curves of pretraining runs, as interactive figures of plotly in HTML."""
import html

COLOURS = ('#2563eb', '#dc2626', '#16a34a', '#9333ea', '#d97706', '#0891b2', '#be185d', '#4d7c0f')  # of runs
CHARTS = (  # (entry of an epoch in the log, title, whether the axis is logarithmic)
    ('loss', '{loss} (dotted: held-out)', False),
    ('lr', 'Learning rate', False),
    ('gradient_norm', 'Gradient norm', True),
    ('images_per_second', 'Images a second', False))
CONFIG = {'responsive': True, 'displaylogo': False, 'displayModeBar': False}
MANY = 30  # epochs from which on points are not marked


def charts(logs, names, meanings):
    """Return the curves of some runs as HTML, one figure each; the first one contains plotly's script.

    meanings: of the losses of each run, a LossMeaning.
    """
    names = [html.escape(name, quote=False) for name in names]  # plotly makes links of the tags in a text
    figures = [chart(logs, names, meanings, *about).to_html(full_html=False, include_plotlyjs=i == 0, config=CONFIG)
               for i, about in enumerate(CHARTS)]
    return ''.join(f'<figure>{figure}</figure>' for figure in figures)


def chart(logs, names, meanings, field, title, is_logarithmic):
    """Return the figure of one entry of the logs over the epochs."""
    from plotly import graph_objects
    figure = graph_objects.Figure()
    for number, (log, name) in enumerate(zip(logs, names)):
        line = {'color': COLOURS[number % len(COLOURS)], 'dash': 'solid'}
        add_curve(figure, log.epochs, field, name, line, showlegend=len(logs) > 1)
        if field == 'loss':
            measured = [log.before, *log.epochs] if log.before else log.epochs
            add_curve(figure, measured, 'val_loss', f'{name}, '
                                                    'held-out', {**line, 'dash': 'dot'}, showlegend=False)
    if field == 'loss':
        titles = {meaning.title for meaning in meanings}
        title = title.format(loss=titles.pop() if len(titles) == 1 else 'Loss')
        if len(set(meanings)) == 1:
            add_normal_losses(figure, meanings[0])
        for log in logs:
            add_restarts(figure, log)
        figure.update_yaxes(rangemode='tozero')
    longest = max((log.epochs[-1]['epoch'] for log in logs if log.epochs), default=1)
    figure.update_layout(title=title, template='plotly_white', height=340,
                         margin={'l': 55, 'r': 15, 't': 45, 'b': 70}, legend={'orientation': 'h', 'y': -0.2},
                         xaxis={'title': 'epoch', 'range': [0, longest]}, font={'family': 'system-ui, '
                                                                                          'sans-serif'})
    if is_logarithmic:
        figure.update_yaxes(type='log')
    return figure


def add_curve(figure, entries, field, name, line, showlegend):
    """Draw an entry of the log over the epochs, where it was measured."""
    points = [(entry['epoch'], entry[field]) for entry in entries if entry.get(field) is not None]
    if points:
        x, y = zip(*points)
        mode = 'lines+markers' if len(x) < MANY else 'lines'
        figure.add_scatter(x=x, y=y, name=name, mode=mode, line=line, showlegend=showlegend)


def add_normal_losses(figure, meaning):
    """Mark the losses that runs usually have. meaning: a LossMeaning."""
    if meaning.at_the_end:
        figure.add_hrect(*meaning.at_the_end, fillcolor='#16a34a', opacity=0.12, line_width=0,
                         annotation_position='bottom left', annotation_text='normal at the end of long runs')
    for level, text in meaning.levels:
        figure.add_hline(level, line={'color': '#6b7280', 'dash': 'dash', 'width': 1}, annotation_text=text,
                         annotation_position='bottom right')


def add_restarts(figure, log):
    """Mark the steps at which a run went on, in epochs."""
    restarts = log.runs[1:]
    if not restarts or not log.epochs or not log.epochs[0]['step']:
        return
    steps_per_epoch = log.epochs[0]['step'] / log.epochs[0]['epoch']
    for run in restarts:
        figure.add_vline(run['step'] / steps_per_epoch, line={'color': '#9ca3af', 'dash': 'dot', 'width': 1},
                         annotation_text='restart', annotation_font_size=9)
