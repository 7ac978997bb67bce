"""nezha_ds: pretrain NEZHA, the Chinese BERT with functional relative positions, with DeepSpeed."""

__version__ = "0.1.0"
