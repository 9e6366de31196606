"""Floor 3: training on TRL. `CCTrainer` and `CCConfig` are its public names."""

from cctuning.training.config import CCConfig
from cctuning.training.trainer import CCTrainer

__all__ = ["CCConfig", "CCTrainer"]
