"""ConvMAE as the trainer sees it: where its answers to `Method` (pretrain/methods.py) are not MAE's
(pretrain/mae_method.py). Its options are in pretrain/convmae_options.py.
"""
from pretrain.convmae import build_convmae
from pretrain.convmae_options import NAME
from pretrain.convmae_recipe import Recipe
from pretrain.mae_method import MAEMethod
from pretrain.results.meaning import Paper

PAPER = Paper('Peng Gao, Teli Ma, Hongsheng Li, Ziyi Lin, Jifeng Dai, Yu Qiao',
              'MCMAE: Masked Convolution Meets Masked Autoencoders', 'NeurIPS 2022', '2205.03892')
IDEA = ('A network of convolutions and attention pretrained without labels: most cells of an image are hidden, the '
        'network encodes the others, and a small transformer reconstructs what was hidden from all stages of the network')


class ConvMAEMethod(MAEMethod):
    """ConvMAE (Gao et al., NeurIPS 2022); see `Method` in pretrain/methods.py for what each part is."""
    name = NAME
    recipe = Recipe()
    title = 'ConvMAE'
    paper = PAPER
    idea = IDEA
    trained_beside = 'fusion and decoder'

    def build_network(self, record, **arguments):
        return build_convmae(**arguments, record=record)

    def record(self, network):
        return network.encoder.record
