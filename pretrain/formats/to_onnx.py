"""--to=onnx: a graph for onnxruntime and others."""
import torch
from torch import nn

from common.cli import needs
from common.words import first_line
from pretrain.formats import contents, verify


class Outputs(nn.Module):
    """What the graph computes of images: feature maps, small stride to large, the mean of the last, logits.

    logits: whether the last are wanted; they need a trained classifier.
    """

    def __init__(self, encoder, logits=False):
        super().__init__()
        self.encoder = encoder
        self.cnn = encoder.cnn
        self.logits = logits

    def forward(self, images):
        levels = self.encoder.pyramid(images)
        logits = (self.cnn(images),) if self.logits else ()  # onnxruntime computes once what both share
        return *levels, levels[-1].mean((2, 3)), *logits


@torch.no_grad()
def write(saved, stem, suffix, licence):
    """Write a graph that takes batches of any number of images. See WRITERS in pretrain/export.py."""
    needs('onnx', 'onnxscript', 'onnxruntime')
    import onnxruntime
    path = stem.with_suffix('.onnx')
    encoder = saved.network.encoder
    images = verify.sample_images(saved)
    model = Outputs(encoder, saved.has_classifier).eval()
    entries = contents.entries_of(saved)
    own = {key: value for key, value in encoder.cnn.state_dict().items() if key in entries}
    verify.require_given(saved, own, 'the exporter')
    outputs = [*(f'stride_{stride}' for stride in encoder.reductions), 'pooled']
    if saved.has_classifier:
        outputs.append('logits')
    try:
        torch.onnx.export(model, (images,), str(path), dynamo=True, verbose=False, external_data=False,
                          input_names=['images'], output_names=outputs,
                          dynamic_shapes={'images': {0: torch.export.Dim('batch')}})
    except Exception as error:  # whatever an exporter can meet in a network
        cause = error.__cause__ or error  # torch's own error begins with a banner
        raise ValueError(f'torch cannot export {saved.model} to ONNX: {type(cause).__name__}: '
                         f'{first_line(str(cause).strip())}') from error
    if licence is not None:
        note_licence(path, licence)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for batch in (images, images[:1], torch.cat([images, images, images[:1]])):
        theirs = [torch.from_numpy(value) for value in session.run(outputs, {'images': batch.numpy()})]
        verify.require_same(list(model(batch)), theirs, 'onnxruntime')
    return [f'{path}: run by onnxruntime {onnxruntime.__version__} with batches of 1, 2 and 5 images of '
            f'{" x ".join(map(str, encoder.input_size))}; the same {", ".join(outputs)}']


def note_licence(path, licence):
    """Write the licence of the weights into the metadata of a graph."""
    import onnx
    graph = onnx.load(str(path))
    onnx.helper.set_model_props(graph, {'license': licence})
    onnx.save(graph, str(path))
