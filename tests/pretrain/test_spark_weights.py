"""SparK's weight files: what is found in them, and what other programs read of them."""
import pytest
import torch

from common.networks.create import create_cnn
from common.networks.keys import unwrap
from common.networks.load import load_classifier
from downstream_imagenet.tuned import read_tuned
from pretrain.spark import build_spark
from pretrain.spark_weights import (
    decoder_width,
    find_init,
    is_part_of_whole,
    is_whole,
    official_encoder,
    official_whole,
)
from tests.pretrain.runs import assert_encoder_is_read


@pytest.fixture(scope='module', params=['test_resnet', 'convnext_atto'])
def spark(request):
    spark = build_spark(request.param, 64, decoder_width=32)
    spark.model = request.param
    return spark


def whole(spark, is_official):
    """The content of a whole file, ours or official."""
    if is_official:
        encoder = official_encoder(spark.encoder.cnn.state_dict())
        return official_whole(spark, encoder, ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)))
    return {'version': 2, 'model': spark.state_dict(), 'optimizer': {'state': {0: {'exp_avg': torch.ones(3)}}}}


@pytest.mark.parametrize('is_official', [False, True])
def test_a_whole_file_starts_a_fine_tuning(tmp_path, spark, is_official):
    """Programs that know nothing of SparK find the network by its own names."""
    torch.save(whole(spark, is_official), tmp_path / 'w.pth')
    cnn = create_cnn(spark.model, num_classes=7)
    loaded = load_classifier(cnn, tmp_path / 'w.pth', spark.model, (64, 64))
    own = spark.encoder.cnn.state_dict()
    features = own.keys() - set(spark.encoder.unused)
    assert all(torch.equal(cnn.state_dict()[key], own[key]) for key in features)
    assert {'dense_decoder', 'densify_norms', 'mask_tokens'} <= set(loaded.beside)
    with pytest.raises(ValueError, match='is a pretrained network, without a trained classifier'):
        read_tuned(tmp_path / 'w.pth', model=spark.model)


@pytest.mark.parametrize('is_official', [False, True])
def test_what_is_found_in_a_whole_file(spark, is_official):
    state = unwrap(whole(spark, is_official))
    assert is_whole(state) and not is_whole(spark.encoder.cnn.state_dict())
    assert decoder_width(state) == 32 and decoder_width(spark.encoder.cnn.state_dict()) is None
    assert_encoder_is_read(spark, *find_init(spark, state))


def test_the_encoder_in_a_whole_file_by_its_name(spark):
    state = unwrap(whole(spark, is_official=False))
    module, network, _ = find_init(spark, state, which='encoder.cnn')
    assert module is spark.encoder.cnn and is_part_of_whole(network)
    _, network, _ = find_init(spark, {f'encoder.cnn.{key}': value for key, value in module.state_dict().items()})
    assert not is_part_of_whole(network)  # there is no decoder beside it
