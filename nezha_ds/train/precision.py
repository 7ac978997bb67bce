"""Whether the device computes in the JSON's precision, asked before ranks meet; and fp16 where it says that it cannot.

DeepSpeed asks the accelerator and refuses fp16 on most CPUs, where torch computes it all the same: a matrix product 50
times slower than in fp32 (384 × 384, one thread, 55 ms and 1.0 ms). Under `train.emulate_fp16` the accelerator's answer
is overridden, and the very same JSON runs there, with the same loss scale, overflows and rounding as on a GPU.
"""

import logging

from nezha_ds.errors import ConfigError
from nezha_ds.train.ds_config import DeepSpeedConfig
from nezha_ds.train.engine import AcceleratorInfo, claim_fp16

log = logging.getLogger(__name__)


def settle_precision(accelerator: AcceleratorInfo, ds_config: DeepSpeedConfig, emulate_fp16: bool, loud: bool) -> None:
    """ConfigError when the device lacks the precision; fp16 made there under the switch, which `loud` says aloud.

    Where the device computes fp16 by itself the switch does nothing, so that one recipe serves every machine.
    """
    precision = ds_config.precision
    has = {"fp32": True, "bf16": accelerator.bf16, "fp16": accelerator.fp16}[precision]
    if precision != "fp16" or not emulate_fp16:
        if not has:
            raise ConfigError(
                f"{ds_config.source} asks for {precision}, which {accelerator.name} here cannot compute; "
                "choose a JSON with another precision (`nezha-ds doctor` tells which)"
                + (", or try it slowly with train.emulate_fp16=true" if precision == "fp16" else "")
            )
        return
    if has:
        message = "train.emulate_fp16 does nothing here: %s computes fp16 by itself"
    else:
        claim_fp16()
        message = (
            "fp16 is EMULATED (train.emulate_fp16): %s here has none, and torch's own is some 50 times slower than "
            "fp32. For tests, not for training"
        )
    if loud:
        log.warning(message, accelerator.name)
