"""Training on TRL: `CCTrainer` and its options, `CCConfig`."""

from cctuning.training.config import CCConfig
from cctuning.training.trainer import CCTrainer

__all__ = ["CCConfig", "CCTrainer"]
