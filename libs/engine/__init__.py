"""Training runs: processes, folder, state, loop. It has never heard of diffusion or of images."""

from libs.engine.foreign import adapter_settings, class_names
from libs.engine.frozen import BASE, base_of, keep_frozen
from libs.engine.loop import check_settings, fit, validation_loss
from libs.engine.run import Run, last_session, read_json, read_metrics, saved_config, start
from libs.engine.state import State, load_weights, start_share, warmed_up, weights_hash

__all__ = ["BASE", "Run", "State", "adapter_settings", "base_of", "check_settings", "class_names", "fit", "keep_frozen", "last_session",
           "load_weights", "read_json", "read_metrics", "saved_config", "start", "start_share", "validation_loss", "warmed_up", "weights_hash"]
