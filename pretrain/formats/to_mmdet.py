"""--to=mmdet: a file for the ConvNeXts of downstream_mmdet."""
from common.reliability.checkpoint import read_plain, save
from pretrain.formats import contents, verify


def write(saved, stem, suffix, licence):
    """Write the entries of a ConvNeXt under timm's names, as .pth. See WRITERS in pretrain/export.py."""
    path = stem.with_suffix('.pth')
    name = contents.name_of(saved)
    if not name.startswith('convnext'):
        raise ValueError(f'downstream_mmdet reads ConvNeXts, not {name}; for any network there is '
                         'downstream_coco')
    save(path, contents.entries_of(saved, classifier=False))
    verify.require_given(saved, read_plain(path), 'downstream_mmdet', classifier=False)
    said = verify.run_reader('-m', 'downstream_mmdet.weights', path, name)
    return [f'{path}: read by downstream_mmdet/weights.py, strictly ({said})']
