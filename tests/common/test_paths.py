"""What is said of paths that options name."""
import pytest

from common.paths import require_file, require_weights


@pytest.mark.parametrize(('names', 'ending'), [
    (('model_best.pth', 'model_last.pth', 'log.txt'), ' of it, such as {}/model_last.pth'),
    (('b.pth', 'a.safetensors'), ' of it, such as {}/a.safetensors'), (('log.txt',), ' of it')])
def test_a_folder_in_place_of_a_file_is_told_with_a_file_in_it(tmp_path, names, ending):
    for name in names:
        (tmp_path / name).touch()
    for require in (require_file, require_weights):
        with pytest.raises(ValueError) as error:
            require(str(tmp_path))
        assert str(error.value) == f'{tmp_path} is a folder: give a file{ending.format(tmp_path)}'


def test_files_and_what_is_not_there(tmp_path):
    (tmp_path / 'w.pth').touch()
    require_file(tmp_path / 'w.pth')
    for source in (f'{tmp_path}/w.pth', f'{tmp_path}/w.pth:ema', 'timm', None):
        require_weights(source)
    with pytest.raises(ValueError, match='there is no file gone.pth$'):
        require_file('gone.pth')
