"""What saves memory or time changes no result: checkpointed blocks, one product for three, compiled graphs."""

from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nezha_ds.model import nezha
from nezha_ds.model.heads import NezhaForPreTraining
from nezha_ds.objectives import ObjectiveSettings, pretraining_losses
from tests.model.samples import lively_model, random_batch, small_config

BOTH = ObjectiveSettings(mlm=1, nsp=1)


def loss_of(model, batch):
    return pretraining_losses(model(batch), batch, BOTH).total


def loss_and_gradients(model, batch):
    torch.manual_seed(7)
    loss = loss_of(model, batch)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def bytes_held(forward):
    """What autograd keeps between forward and backward."""
    sizes = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: sizes.setdefault(x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()) and x, lambda x: x
    ):
        kept = forward()
    del kept
    return sum(sizes.values())


# ------------------------------------------------------------------------------------------------- checkpointed blocks


@pytest.mark.parametrize("checkpointed", [1, 2])
@pytest.mark.parametrize("values", [{}, {"norm": "pre", "positions": "learned-relative"}], ids=["nezha", "other"])
def test_checkpointed_blocks_give_the_same_bits_with_dropout(checkpointed, values):
    model, batch = lively_model(small_config(**values)).train(), random_batch([40, 13])
    expected = loss_and_gradients(model, batch)
    model.encoder.checkpointed = checkpointed
    assert all(torch.equal(*pair) for pair in zip(loss_and_gradients(model, batch), expected, strict=True))


def test_each_checkpointed_block_keeps_its_input_alone():
    model, batch = lively_model(small_config(num_hidden_layers=3, attention="table")).train(), random_batch([100, 90])
    held = []
    for checkpointed in range(4):
        model.encoder.checkpointed = checkpointed
        held.append(bytes_held(lambda: model.encoder(batch.input_ids, batch.token_type_ids, batch.lengths)))
    per_block = [more - less for more, less in pairwise(held)]
    states = 2 * 100 * 32 * 4
    probabilities = 2 * 4 * 100 * 100 * 4
    assert min(per_block) > probabilities
    # Beside the embeddings' own: the input of each block.
    assert held[3] < 10 * states


# --------------------------------------------------------------------------------------------- one product for three


def test_one_product_for_three_is_the_same_in_every_bit_that_counts(monkeypatch):
    model, batch = lively_model(small_config()), random_batch([40, 13])
    expected = loss_and_gradients(model, batch)
    monkeypatch.setattr(nezha, "PROJECTIONS", {})
    for one, other in zip(loss_and_gradients(model, batch), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


# -------------------------------------------------------------------------------------------- compiled, and no waiting


@pytest.mark.parametrize(
    ("values", "checkpointed"),
    [({}, 0), ({"norm": "pre", "positions": "learned-relative"}, 1), ({"positions": "learned-absolute"}, 0)],
    ids=["nezha", "pre-learned-checkpointed", "bert"],
)
def test_forward_and_loss_are_one_graph(values, checkpointed):
    """`fullgraph` raises where Python would have to look at a number; aot_eager needs no compiler."""
    torch._dynamo.reset()
    config = small_config(hidden_dropout_prob=0, attention_probs_dropout_prob=0, **values)
    model, batch = lively_model(config).train(), random_batch([40, 13])
    expected = loss_and_gradients(model, batch)
    model.encoder.checkpointed = checkpointed
    compiled = torch.compile(loss_of, fullgraph=True, dynamic=False, backend="aot_eager")
    loss = compiled(model, batch)
    found = [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_dropout_compiles_too_and_so_do_long_sequences():
    """On a CPU both have ways of their own that look at numbers: not in a graph."""
    torch._dynamo.reset()
    model, batch = lively_model(small_config(num_hidden_layers=1)).train(), random_batch([410, 13])
    compiled = torch.compile(loss_of, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.manual_seed(1)
    first, second = compiled(model, batch), compiled(model, batch)
    torch.manual_seed(1)
    assert torch.equal(first, compiled(model, batch))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("positions", ["functional-relative", "learned-relative", "learned-absolute"])
def test_nothing_looks_at_a_number_on_the_device(positions):
    """Tensors without data: whatever would wait for a device raises here. Forward, losses, backward, with dropout."""
    with torch.device("meta"):
        model = NezhaForPreTraining(small_config(positions=positions, attention="table")).train()
    loss = loss_of(model, random_batch([40, 13]).to("meta"))
    loss.backward()
    assert loss.is_meta
    assert all(p.grad is not None for p in model.parameters())


class NoLook(TorchDispatchMode):
    """Refuses what reads a number from a tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_nor_on_a_cpu_by_the_table():
    """Without dropout, whose numbers are drawn on the host there."""
    model, batch = lively_model(small_config(attention="table")).eval(), random_batch([40, 13])
    with NoLook():
        loss_of(model, batch).backward()
    with pytest.raises(AssertionError), NoLook():
        torch.ones(1).item()
