"""What the methods of pretraining answer alike: see `Method` in pretrain/methods.py for what each part is."""
from common.training.optim import parameter_groups
from pretrain.results.pictures import in_columns, views


class MethodBase:
    """The answers of a method whose loss of an image depends on no other image and has no terms.

    A method that derives from it adds `no_decay`: parts of the names of parameters that get no weight decay.
    """

    def parameter_groups(self, network, options):
        return parameter_groups(network, options.weight_decay, self.no_decay)

    def completed(self, options, parts, ranks):
        return options

    def connect(self, network, options, part, ranks):
        pass

    def disconnect(self, network):
        pass

    def held_out_loss(self, network, images, visible):
        return network(images, visible)

    def term_sums(self, network):
        return None

    def metrics(self, network, sums):
        return {}

    def exported(self, network):
        return network.encoder.cnn

    def picture(self, network, images, visible, normalisation):
        return in_columns(views(network, images, visible, normalisation)), 'input, masked, reconstruction'

    def masked_images(self, options):
        return ''

    def trained_besides(self, network):
        return []
