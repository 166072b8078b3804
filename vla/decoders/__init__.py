"""Decoders of actions: one file each, and one line here."""

from typing import TYPE_CHECKING

from volar.vla.action_tokenizers.action_tokenizer import ActionTokenizer
from volar.vla.decoders.autoregressive import Autoregressive
from volar.vla.decoders.decoder import Decoder
from volar.vla.decoders.flow import Flow
from volar.vla.decoders.parallel import Parallel

if TYPE_CHECKING:
    from volar.vla.backbone import Backbone
    from volar.vla.configuration_volar import VolarConfig


def make_decoder(config: "VolarConfig", backbone: "Backbone", action_size: int, tokenizer: ActionTokenizer) -> Decoder:
    """The decoder that a configuration names, for the network around `backbone`."""
    if config.decoder == "autoregressive":
        return Autoregressive(backbone.width, backbone.word_scale(), tokenizer, backbone.action_end)
    if config.decoder == "flow":
        return Flow(config.expert_width, action_size, config.flow_steps, backbone.model.config.get_text_config())
    return Parallel()
